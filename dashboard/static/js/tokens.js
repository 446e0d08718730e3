// What is known of the token under the pointer, or of the one that the keyboard is at, in a line below.
// Without this, the same line is each token's title, and the table has all of them.
const told = document.querySelector("[data-told]");

const tokenOf = (event) => event.target.closest("[data-tokens] > span");

function show(token) {
  if (!token) return;
  token.dataset.numbers ??= token.title;
  token.removeAttribute("title"); // it would cover the tokens beside it
  const text = document.createElement("b");
  text.textContent = JSON.stringify(token.textContent);
  told.replaceChildren(text, ` · ${token.dataset.numbers}`);
}

// One token at a time is in the tab order of its completion; the arrows move from there.
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
