/* Sets the formulas in the order a reader needs them: those in view, and when the first explorer
   is drawn, all others. Two promises tell when: `formulas.inView` and `formulas.all`.
   ipywidgets 8 typesets labels by MathJax 2's call MathJax.Hub.Queue: it is handed to MathJax 3,
   which takes the place of window.MathJax when it has loaded. */
(() => {
  const here = document.currentScript.src.replace(/[^/]*$/, "");
  const PATIENCE = 5000; // ms, should no explorer be drawn

  const queue = ([, , element] = []) =>
    element && window.formulas.all.then(() => window.MathJax.typesetPromise([element]));
  const offer = () => { window.MathJax.Hub = { Queue: queue }; };
  offer();

  let loading = null;
  const load = () => (loading ??= new Promise((go, stop) => {
    const src = `${here}vendor/mathjax/tex-mml-chtml.js`;
    const script = Object.assign(document.createElement("script"), { src, onload: go, onerror: stop });
    document.head.append(script);
  }).then(offer).then(() => window.MathJax.startup.promise));
  const set = (formulas) => load().then(() => window.MathJax.typesetPromise(formulas));

  const isInView = (formula) => {
    const { top, bottom } = formula.getBoundingClientRect();
    return bottom > 0 && top < window.innerHeight;
  };
  const explorer = () => new Promise((go) => {
    if (!document.querySelector('script[type$="widget-view+json"]')) return go();
    const idle = window.requestIdleCallback ?? setTimeout; // the explorer is painted before
    const look = () => document.querySelector(".siamcam[data-drawn]") && idle(go);
    new MutationObserver((_, observer) => look() && observer.disconnect())
      .observe(document.body, { subtree: true, childList: true, attributeFilter: ["data-drawn"] });
    setTimeout(go, PATIENCE);
  });

  const seen = [...document.querySelectorAll(".math")].filter(isInView);
  const inView = seen.length ? set(seen) : Promise.resolve();
  window.formulas = { inView, all: inView.then(explorer).then(() => set()) };
})();
