/* Keeps the book's widgets inside the book: no other server is asked.
   - "anywidget", an AMD module, comes from this folder;
   - so do html-manager's icon fonts;
   - ipywidgets 8 typesets labels by MathJax 2's call MathJax.Hub.Queue: hand it to MathJax 3,
     which takes the place of window.MathJax when it has loaded. */
(() => {
  const here = document.currentScript.src.replace(/[^/]*$/, "");
  window.requirejs.config({
    paths: {
      anywidget: here + "vendor/anywidget",
      "@jupyter-widgets/html-manager/dist": here + "vendor/html-manager",
    },
  });
  const waiting = [];
  const typeset = (job) => {
    const mathjax = window.MathJax;
    if (!mathjax.typesetPromise) waiting.push(job);
    else if (job && job[2]) mathjax.typesetPromise([job[2]]).catch(() => {});
  };
  const offer = () => {
    window.MathJax = window.MathJax || {};
    window.MathJax.Hub = window.MathJax.Hub || { Queue: typeset };
  };
  offer();
  window.addEventListener("load", () => {
    offer();
    window.MathJax.startup?.promise?.then(() => waiting.splice(0).forEach(typeset));
  });
})();
