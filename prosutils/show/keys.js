// JupyterLab takes arrow keys, Enter and space for its cells unless the focused element itself says that it wants them.
function guard(event) {
  if (event.target.closest?.(".pros-explorer")) event.target.setAttribute("data-lm-suppress-shortcuts", "true");
}

function render({ el }) {
  el.hidden = true;
  document.addEventListener("focusin", guard);
}

export default { render };
