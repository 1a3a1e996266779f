/* Joined after an explorer's module in a file of its own: plain controls and a model in little. */

const state = JSON.parse(document.getElementById("siamcam-state").textContent);
const listeners = {};
const model = {
  get: (name) => state.traits[name],
  set: (name, value) => {
    if (state.traits[name] === value) return;
    state.traits[name] = value;
    listeners[name]?.forEach((listener) => listener());
  },
  save_changes: () => {},
  on: (event, listener) => (listeners[event.split(":")[1]] ??= new Set()).add(listener),
  off: (event, listener) => listeners[event.split(":")[1]]?.delete(listener),
};

const CONTROLS = {
  menu: ({ trait, label, options }) => {
    const select = make("select", { change: () => model.set(trait, select.selectedIndex) },
      ...options.map((text) => make("option", {}, text)));
    return [make("label", {}, make("span", {}, label), select), (k) => (select.selectedIndex = k)];
  },
  buttons: ({ trait, label, options }) => {
    const inputs = options.map((_, k) => make("input", { type: "radio", name: trait,
      change: () => model.set(trait, k) }));
    const group = make("fieldset", {}, make("legend", {}, label), make("div", {},
      ...options.map((text, k) => make("label", {}, inputs[k], text))));
    return [group, (k) => (inputs[k].checked = true)];
  },
  slider: ({ trait, label, min, max, step }) => {
    const input = make("input", { type: "range", min, max, step,
      input: () => model.set(trait, input.valueAsNumber) });
    const shown = make("span", { class: "siamcam-value" });
    return [make("label", {}, make("span", {}, label), input, shown), (value) => {
      input.value = value;
      shown.textContent = value.toFixed(step < 1 ? 2 : 0);
    }];
  },
};

for (const control of state.controls) {
  const [element, show] = CONTROLS[control.kind](control);
  document.querySelector(".siamcam-controls").append(element);
  follow(model, [control.trait], () => show(model.get(control.trait)));
}
render({ model, el: document.querySelector(".siamcam-view") });
