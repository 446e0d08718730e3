// Shows the numbers of the token under the pointer or keyboard focus in a line below.
// Without scripts each token has them as its title, and the table has them all.
const told = document.querySelector("[data-told]");

const tokenOf = (event) => event.target.closest("[data-tokens] > span");

function show(token) {
  if (!token) return;
  token.dataset.numbers ??= token.title;
  token.removeAttribute("title"); // it would cover neighbouring tokens
  const text = document.createElement("b");
  text.textContent = JSON.stringify(token.textContent);
  told.replaceChildren(text, ` · ${token.dataset.numbers}`);
}

// One token per completion is in the tab order; the arrow keys move from there.
function moveTo(token) {
  if (!token) return;
  token.parentElement.querySelector("[tabindex]")?.removeAttribute("tabindex");
  token.tabIndex = 0;
  token.focus();
}

function target(token, key) {
  if (key === "ArrowRight") return token.nextElementSibling;
  if (key === "ArrowLeft") return token.previousElementSibling;
  if (key === "Home") return token.parentElement.firstElementChild;
  if (key === "End") return token.parentElement.lastElementChild;
  return null;
}

function setUp(box) {
  if (!box.firstElementChild) return;
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

document.querySelectorAll("[data-tokens]").forEach(setUp);
