// The map of map_explorer: points to hover or step through, a legend that brushes, several maps of the same pictures.
const SIZE = 460, EDGE = 16, FAINT = "#CBD3DA", SVG = "http://www.w3.org/2000/svg";

function drawn(tag, attributes) {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  return node;
}

function menu(label, names) {
  const select = element("select", {}, ...names.map((name) => element("option", { value: name, textContent: name })));
  return [element("label", {}, `${label} `, select), select];
}

function render({ model, el }) {
  const pictures = model.get("pictures"), kinds = model.get("kinds"), points = model.get("maps");
  const [mapLabel, mapMenu] = menu("Map", Object.keys(points));
  const [kindLabel, kindMenu] = menu("Colour by", Object.keys(kinds));
  const all = element("button", { textContent: "Show all", title: "End brushing" });
  const plot = drawn("svg", { viewBox: `0 0 ${SIZE} ${SIZE}`, tabindex: 0, class: "pros-map", role: "application",
    "aria-label": "Map of pictures. Left and right arrow keys step from point to point." });
  const dots = pictures.map((_, i) => drawn("circle", { "data-i": i, r: pictures.length > 400 ? 3.2 : 4.5 }));
  const ring = drawn("circle", { r: 8, fill: "none", stroke: "#22303C", "stroke-width": 2, visibility: "hidden" });
  plot.append(...dots, ring);
  const image = element("img", { alt: "" }), text = element("p", { role: "status", "aria-live": "polite" });
  const legend = element("div", { className: "pros-legend", role: "group" });
  el.classList.add("pros", "pros-maps");
  // JupyterLab takes arrow keys, Enter and space for its cells unless the focused element says that it wants them.
  el.addEventListener("focusin", (event) => event.target.setAttribute("data-lm-suppress-shortcuts", "true"));
  el.append(element("div", {}, element("div", { className: "pros-tools" }, mapLabel, kindLabel, all), plot),
    element("div", { className: "pros-side" }, element("div", { className: "pros-shown" }, image, text), legend));

  function change(part) {
    model.set("state", { ...model.get("state"), ...part });
    model.save_changes();
  }
  function visible(i) {                                            // in every kind that is brushed at all
    const { brushed } = model.get("state");
    return Object.entries(kinds).every(([kind, { index }]) => !brushed[kind].length || brushed[kind].includes(index[i]));
  }
  function brush(kind, label) {
    const { brushed } = model.get("state"), chosen = brushed[kind];
    change({ brushed: { ...brushed, [kind]: chosen.includes(label) ? chosen.filter((x) => x !== label) : [...chosen, label] } });
  }
  function buildLegend(kind) {
    const { names, colours } = kinds[kind];
    legend.setAttribute("aria-label", `Brush by ${kind}`);
    legend.dataset.kind = kind;
    legend.replaceChildren(...names.map((name, label) => {
      const dot = element("span", { className: "pros-dot" });
      dot.style.background = colours[label];
      const entry = element("button", { "aria-pressed": "false" }, dot, name);
      entry.addEventListener("click", () => brush(kind, label));
      return entry;
    }));
  }

  function refresh() {
    const { map, kind, brushed, point } = model.get("state"), { index, colours } = kinds[kind];
    mapMenu.value = map;
    kindMenu.value = kind;
    dots.forEach((dot, i) => {
      const [x, y] = points[map][i], shown = visible(i);
      dot.setAttribute("cx", EDGE + x * (SIZE - 2 * EDGE));
      dot.setAttribute("cy", EDGE + y * (SIZE - 2 * EDGE));
      dot.setAttribute("fill", shown ? colours[index[i]] : FAINT);
      dot.setAttribute("opacity", shown ? 0.85 : 0.35);
    });
    if (legend.dataset.kind !== kind) buildLegend(kind);
    [...legend.children].forEach((entry, label) => entry.setAttribute("aria-pressed", brushed[kind].includes(label)));
    all.disabled = !Object.values(brushed).some((labels) => labels.length);
    ring.setAttribute("visibility", point < 0 ? "hidden" : "visible");
    image.hidden = point < 0;
    if (point < 0) { text.textContent = "Point at a picture, or use the arrow keys on the map."; return; }
    for (const name of ["cx", "cy"]) ring.setAttribute(name, dots[point].getAttribute(name));
    image.src = pictures[point];
    text.replaceChildren(element("b", { textContent: kinds.class.names[kinds.class.index[point]] }), element("br"),
      kinds.domain.names[kinds.domain.index[point]]);
  }
  function step(by) {                                              // from left to right among the points that are brushed
    const { map, point } = model.get("state"), order = dots.map((_, i) => i).filter(visible);
    if (!order.length) return;
    order.sort((i, j) => points[map][i][0] - points[map][j][0]);
    const at = order.indexOf(point);
    change({ point: order[at < 0 ? 0 : (at + by + order.length) % order.length] });
  }

  plot.addEventListener("pointerover", (event) => {
    if (event.target.dataset.i !== undefined) change({ point: Number(event.target.dataset.i) });
  });
  plot.addEventListener("keydown", (event) => {
    const by = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (!by) return;
    step(by);
    event.preventDefault();
    event.stopPropagation();
  });
  mapMenu.addEventListener("change", () => change({ map: mapMenu.value }));
  kindMenu.addEventListener("change", () => change({ kind: kindMenu.value }));
  all.addEventListener("click", () => change({ brushed: { domain: [], class: [] } }));
  model.on("change:state", refresh);
  refresh();
  return () => model.off("change:state", refresh);
}

export default { render };
