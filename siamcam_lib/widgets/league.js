/* Explainers in the order of a column. What a cell says is worked out in league.py. */

const NAME = "explainer";

/** Numbers of the rows, the best first or last; those without a cell last, equals as they came. */
function ordered({ cells, higher }, reverse) {
  const sign = Boolean(higher) === reverse ? 1 : -1;
  return [...cells.keys()].sort((i, j) => {
    const a = cells[i], b = cells[j];
    return a && b ? sign * (a.mean - b.mean) : !a - !b;
  });
}

/** The names as a column like the others: from A to Z is best first. */
function names(explainers) {
  const titles = explainers.map(({ title }) => title);
  const alphabet = [...titles].sort((a, b) => a.localeCompare(b));
  const cells = titles.map((title) => ({ mean: alphabet.indexOf(title) }));
  return { key: NAME, title: NAME, cells };
}

// --- the table ----------------------------------------------------------------------------------

/** What a head says below its title. */
const notes = ({ key, higher, unit }) => key === NAME ? [] :
  [unit, `${higher ? "high" : "low"} is better`].filter(Boolean)
    .map((text) => make("small", {}, text));

function cell(found) {
  if (!found) return make("td", {}, "–");
  const { text, interval, shade, near } = found;
  return make("td", { style: `--shade: ${shade}` }, make(near ? "b" : "span", {}, text),
    ...(interval ? [make("small", {}, interval)] : []));
}

/** A data set's table; `sort` is told the key of a column, `tell` the explainer looked at. */
function table({ name, explainers, columns }, sort, tell) {
  const all = [names(explainers), ...columns];
  const heads = all.map((column) => make("th", { scope: "col" },
    make("button", { type: "button", style: `min-width: ${Math.ceil(column.title.length / 3)}ch`,
      click: () => sort(column.key) }, column.title, ...notes(column))));
  const buttons = explainers.map(({ title, limits }, k) => make("button", { type: "button",
    title: limits, tabindex: -1, focus: () => look(k), click: () => look(k) }, title));
  // not where the pointer comes to rest as rows are moved beneath it
  const rows = explainers.map(({ cost }, k) => make("tr", { pointermove: () => tell(k) },
    make("th", { scope: "row" }, buttons[k], ...(cost ? [make("small", {}, cost)] : [])),
    ...columns.map(({ cells }) => cell(cells[k]))));
  const body = make("tbody");
  const element = make("table", { class: "siamcam-league", "aria-label": name },
    make("thead", {}, make("tr", {}, ...heads)), body);
  let order = [];

  // of the names one is reached with the tab key, the others from there
  const reach = (k) => buttons.forEach((button, i) => (button.tabIndex = i === k ? 0 : -1));
  const look = (k) => { reach(k); tell(k); };
  body.addEventListener("keydown", (event) => {
    const at = order.findIndex((k) => buttons[k] === event.target);
    const to = { ArrowUp: at - 1, ArrowDown: at + 1, Home: 0, End: order.length - 1 }[event.key];
    if (at < 0 || to === undefined) return;
    event.preventDefault();
    buttons[order[to]]?.focus({ preventScroll: true }); // it would go back to the first column
    rows[order[to]]?.scrollIntoView({ block: "nearest", inline: "nearest" });
  });

  const show = (by, reverse) => {
    const at = all.findIndex(({ key }) => key === by), column = all[at];
    order = ordered(column, reverse);
    heads.forEach((head) => head.removeAttribute("aria-sort"));
    heads[at].setAttribute("aria-sort",
      Boolean(column.higher) === reverse ? "ascending" : "descending");
    body.append(...order.map((k) => rows[k]));
    reach(order[0]);
    return { column, order };
  };
  return { element, show };
}

/** The order in words, and who leads. */
function told(column, explainers, reverse) {
  if (column.key === NAME) return `explainers from ${reverse ? "Z to A" : "A to Z"}`;
  const [best] = ordered(column, false), { text, interval } = column.cells[best];
  const others = column.cells.filter((found) => found?.near).length - 1;
  const number = [text, interval, column.unit].filter(Boolean).join(" ");
  return `by “${column.title}”, ${reverse ? "worst" : "best"} first. ` +
    `${explainers[best].title} leads with ${number}` + (others < 1 ? "." : others < 2
      ? "; the interval of one other overlaps." : `; the intervals of ${others} others overlap.`);
}

// --- the view -----------------------------------------------------------------------------------

function render({ model, el }) {
  const { sets } = model.get("data");
  let by = sets[0].columns[0].key, reverse = false, here, shown = null;
  const verdict = make("output", { class: "siamcam-verdict siamcam-leader" });
  const box = make("div", { class: "siamcam-scroll", role: "region", tabindex: 0,
    "aria-label": "league table, scrolls", ...OWN_KEYS });
  const words = make("p", { class: "siamcam-words siamcam-limits" });
  el.classList.add("siamcam");
  el.replaceChildren(verdict, box, words, make("p", { class: "siamcam-note" },
    make("b", {}, "Bold"), ": the 95% interval overlaps that of the column’s best. More colour: " +
    "better placed in its column. A click on a head puts its best first, another its worst."));

  const sort = (key) => {
    [by, reverse] = [key, key === by && !reverse];
    draw();
  };
  const draw = () => {
    const set = sets[model.get("dataset")];
    const tell = (k) => words.replaceChildren(make("b", {}, set.explainers[k].title),
      `: ${set.explainers[k].limits || "nothing is noted of it."}`);
    if (set !== here) {
      here = set;
      if (![NAME, ...set.columns.map(({ key }) => key)].includes(by))
        [by, reverse] = [set.columns[0].key, false];
      shown = table(set, sort, tell);
      box.replaceChildren(shown.element);
      say(words, "Point at an explainer, or go to its name, to read what it cannot do.");
    }
    const { column, order } = shown.show(by, reverse);
    say(verdict, `${set.name}, ${told(column, set.explainers, reverse)}`);
    done(el, { name: set.name, by, reverse, order: order.map((k) => set.explainers[k].title) });
  };
  const forget = follow(model, ["dataset"], draw), unname = nameControls(el);
  return () => { forget(); unname(); };
}

export default { render };
