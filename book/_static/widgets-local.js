/* Keeps the book's widgets inside the book: no other server is asked.
   "anywidget", an AMD module, comes from this folder, and so do html-manager's icon fonts.
   They start as soon as the page is read and the formulas in view are set; not, as html-manager
   would have it, when all has loaded. */
(() => {
  const here = document.currentScript.src.replace(/[^/]*$/, "");
  window.requirejs.config({
    paths: {
      anywidget: `${here}vendor/anywidget`,
      "@jupyter-widgets": `${here}vendor/html-manager`, // where its modules look for icon fonts
      "@jupyter-widgets/html-manager/dist": `${here}vendor/html-manager`,
    },
  });
  const start = () =>
    window.require(["@jupyter-widgets/html-manager/dist/libembed-amd"], (m) => m.renderWidgets());
  Promise.allSettled([window.formulas?.inView]).then(start);
})();
