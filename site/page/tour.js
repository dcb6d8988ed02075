// Five steps that explain the method on the reader's own drawing. A step may set controls (`stage`, see page.js).

const $ = (id) => document.getElementById(id);

const steps = (value) => [
  {
    title: "Draw something",
    text: "Draw one of the things in the gallery, for example a key or a snail, or take an example below the board. CLIP turns "
      + "the drawing and every emoji into a list of 192 numbers, its feature. Emoji are ranked by the cosine of their "
      + "feature and the drawing's. No emoji's name is read.",
    set(stage) { stage.example(); },
  },
  {
    title: "The domain gap",
    text: "mini-CLIP was trained on dark lines on white paper, never on chalk. Now the slider “Chalk” is at its left end and your "
      + "drawing is a pen drawing. Move the slider to the right: the drawing stays the same and the ranks get worse. "
      + "That loss is the domain gap.",
    set(stage) { stage.example(); stage.methods(["zero-shot"]); stage.strength(0); },
  },
  {
    title: "Train on other domains",
    text: "We may train on mosaics, blueprints, stamps, cross-stitch and emoji, but not on chalk, and not on the 56 classes of this "
      + "gallery. “Heads only” trains the matrix that CLIP's last layer ends in. On average it raises mAP@200 from "
      + `${value("zero-shot", "none")} to ${value("heads", "none")}.`,
    set(stage) { stage.example(); stage.strength(1); stage.methods(["zero-shot", "heads"]); },
  },
  {
    title: "Prompts for each picture",
    text: "ProS leaves CLIP frozen. A small network, the simulator, looks at the picture beside prompt units that were trained for "
      + "each domain and class, and writes eight prompts. They stand beside the patches in CLIP's sequence. Choose prompts "
      + `“own” or “none” and compare. On average: ${value("pros", "own")} with them, ${value("pros", "none")} without.`,
    set(stage) { stage.example(); stage.strength(1); stage.methods(["zero-shot", "pros"]); stage.prompts("own"); },
  },
  {
    title: "What does the work?",
    text: `ProS whose projections are trained too reaches ${value("pros-heads", "own")}, and ${value("pros-heads", "none")} without its `
      + "prompts: then the projections do nearly all of the work. A single drawing can show the opposite. Try several, and "
      + "compare with the table below.",
    set(stage) { stage.example(); stage.methods(["zero-shot", "heads", "pros", "pros-heads"]); },
  },
];

// value(method, prompts): a measured mAP@200 as text.
export function startTour(stage, value) {
  const all = steps(value);
  let at = 0;

  function go(to, moved = true) {
    at = to;
    $("tour-title").textContent = `Tour ${at + 1} of ${all.length}: ${all[at].title}`;
    $("tour-text").textContent = all[at].text;
    $("tour-back").disabled = at === 0;
    $("tour-next").disabled = at === all.length - 1;
    if (!moved) return;
    all[at].set(stage);
    $("tour-title").focus();
  }
  function open(shown) {
    $("tour").hidden = !shown;
    $("tour-open").hidden = shown;
    $(shown ? "tour-title" : "tour-open").focus();
  }
  $("tour-back").onclick = () => go(at - 1);
  $("tour-next").onclick = () => go(at + 1);
  $("tour-close").onclick = () => open(false);
  $("tour-open").onclick = () => open(true);
  go(0, false);
}
