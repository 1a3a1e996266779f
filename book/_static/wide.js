/* What scrolls sideways is a stop for the keyboard, and only while it does. The theme sees to code
   and to the tables of cells, MathJax to formulas. */
(() => {
  const boxes = ".pst-scrollable-table-container, .siamcam-picture, .house-diagram";
  const watch = new ResizeObserver((seen) => seen.forEach(({ target }) =>
    target.scrollWidth > target.clientWidth
      ? target.setAttribute("tabindex", "0") : target.removeAttribute("tabindex")));
  document.querySelectorAll(boxes).forEach((box) => watch.observe(box));
})();
