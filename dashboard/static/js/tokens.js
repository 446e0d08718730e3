// What is known of the token under the pointer, or of the one that the keyboard is at, in a line below.
// Without this, the same line is each token's title, and the table has all of them.
const box = document.querySelector("[data-tokens]");
const told = document.querySelector("[data-told]");

function show(token) {
  if (!token || token === box) return;
  token.dataset.told ??= token.title;
  token.removeAttribute("title"); // it would cover the tokens beside it
  const text = document.createElement("b");
  text.textContent = JSON.stringify(token.textContent);
  told.replaceChildren(text, ` · ${token.dataset.told}`);
}

const tokenOf = (event) => event.target.closest("[data-tokens] > span");

// One token at a time is in the tab order; the arrows move from there.
function moveTo(token) {
  if (!token) return;
  box.querySelector("[tabindex]")?.removeAttribute("tabindex");
  token.tabIndex = 0;
  token.focus();
}

function target(token, key) {
  if (key === "ArrowRight") return token.nextElementSibling;
  if (key === "ArrowLeft") return token.previousElementSibling;
  if (key === "Home") return box.firstElementChild;
  if (key === "End") return box.lastElementChild;
  return null;
}

if (box?.firstElementChild) {
  box.firstElementChild.tabIndex = 0;
  told.hidden = false;
  told.textContent = "Point at a token, or move with the arrow keys.";
  box.addEventListener("pointerover", (event) => show(tokenOf(event)));
  box.addEventListener("focusin", (event) => show(tokenOf(event)));
  box.addEventListener("click", (event) => moveTo(tokenOf(event)));
  box.addEventListener("keydown", (event) => {
    const token = tokenOf(event);
    const next = token && target(token, event.key);
    if (!next) return;
    event.preventDefault();
    moveTo(next);
  });
}
