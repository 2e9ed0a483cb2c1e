"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const tip = document.getElementById("tip");
const size = (x) => Math.abs(x).toFixed(3);
const nothing = (x) => Number(size(x)) === 0;
const nats = (x) => (nothing(x) ? "" : x < 0 ? "\u2212" : "+") + size(x);

function describe(one, i) {
  const s = one.informativeness[i];
  const lines = [];
  if (i >= one.thinking_length) lines.push("after the end of thinking: not counted");
  else if (nothing(s)) lines.push(`${nats(s)} nats: no information`);
  else lines.push(`${nats(s)} nats: ${s < 0 ? "less" : "more"} certain of the answer`);
  lines.push(`u ${one.uncertainty[i].toFixed(3)} \u2192 ${one.uncertainty[i + 1].toFixed(3)}`);
  lines.push(`probability ${Math.exp(one.log_prob[i]).toFixed(3)}, entropy ${one.entropy[i].toFixed(3)}`);
  return lines;
}

function hide() {
  tip.hidden = true;
  for (const on of document.querySelectorAll(".t.on")) {
    on.classList.remove("on");
    on.removeAttribute("aria-describedby");
  }
  for (const marker of document.querySelectorAll(".marker")) marker.hidden = true;
}

function mark(token) {
  hide();
  const card = token.closest("article");
  const one = data[card.dataset.index];
  const i = Number(token.dataset.i);
  const marker = card.querySelector(".marker");
  marker.style.left = `${(100 * (i + 1)) / one.axes.tokens}%`;
  marker.style.setProperty("--y", 1 - Math.max(one.uncertainty[i + 1], 0) / one.axes.nats);
  marker.hidden = false;
  token.classList.add("on");
  token.setAttribute("aria-describedby", "tip");
  const title = document.createElement("b");
  title.textContent = one.shown[i];
  tip.replaceChildren(`token ${i + 1} of ${one.shown.length}  `, title);
  for (const line of describe(one, i)) tip.append(document.createElement("br"), line);
  tip.hidden = false;
  place(token.getClientRects()[0] || token.getBoundingClientRect());
}

function place(box) {
  const { width, height } = tip.getBoundingClientRect();
  const right = document.documentElement.clientWidth - width - 8;
  tip.style.left = `${Math.max(Math.min(box.left, right), 4)}px`;
  // Preferably below, since the curve and its marker are above the text.
  const below = box.bottom + 8;
  const above = Math.max(box.top - height - 8, 4);
  tip.style.top = `${below + height < innerHeight - 4 ? below : above}px`;
}

function move(token, key) {
  const all = [...token.parentElement.querySelectorAll(".t")];
  const at = all.indexOf(token);
  const informative = (x) => x.dataset.big === "1";
  const steps = {
    ArrowRight: () => all[at + 1],
    ArrowLeft: () => all[at - 1],
    ArrowDown: () => all.slice(at + 1).find(informative),
    ArrowUp: () => all.slice(0, at).reverse().find(informative),
    Home: () => all[0],
    End: () => all.at(-1),
  };
  return steps[key] ? steps[key]() || token : null;
}

function focus(token) {
  for (const other of token.parentElement.querySelectorAll('[tabindex="0"]')) other.tabIndex = -1;
  token.tabIndex = 0;
  token.focus();
}

function table(card) {
  const one = data[card.dataset.index];
  const body = card.querySelector("tbody");
  if (body.childElementCount) return;
  one.shown.forEach((text, i) => {
    const row = body.insertRow();
    const cells = [i + 1, text, nats(one.informativeness[i]), one.uncertainty[i + 1].toFixed(3),
      one.entropy[i].toFixed(3), Math.exp(one.log_prob[i]).toFixed(3)];
    for (const cell of cells) row.insertCell().textContent = cell;
  });
}

document.addEventListener("pointerover", (event) => {
  const token = event.target.closest(".t");
  if (token) mark(token);
  else if (!event.target.closest(".plot")) hide();
});
document.addEventListener("pointermove", (event) => {
  const plot = event.target.closest(".plot");
  if (!plot) return;
  const box = plot.getBoundingClientRect();
  const all = plot.closest("article").querySelectorAll(".t");
  const { tokens } = data[plot.closest("article").dataset.index].axes;
  const i = Math.round(((event.clientX - box.left) / box.width) * tokens) - 1;
  if (all.length) mark(all[Math.min(Math.max(i, 0), all.length - 1)]);
});
document.addEventListener("focusin", (event) => {
  if (event.target.classList.contains("t")) mark(event.target);
  else hide();
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") hide();
  if (!event.target.classList?.contains("t")) return;
  if (event.altKey || event.ctrlKey || event.metaKey) return; // leave these to the browser
  const next = move(event.target, event.key);
  if (next) {
    event.preventDefault();
    focus(next);
  }
});
document.addEventListener("click", (event) => {
  const token = event.target.closest(".t");
  if (token) focus(token);
});
// Focusing may scroll the page, so the tip follows its token. Otherwise a resting pointer is now over
// a different token, so the tip is hidden.
document.addEventListener("scroll", () => {
  const token = document.activeElement;
  if (!tip.hidden && token.classList.contains("on")) place(token.getClientRects()[0]);
  else hide();
}, { passive: true });
for (const card of document.querySelectorAll("article")) {
  card.querySelector("details")?.addEventListener("toggle", () => table(card));
}
document.getElementById("theme").addEventListener("click", () => {
  const root = document.documentElement;
  const dark = root.dataset.theme
    ? root.dataset.theme === "dark"
    : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
});
