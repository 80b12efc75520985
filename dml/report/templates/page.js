"use strict";
const data = JSON.parse(document.getElementById("data").textContent);

// The table of classes.
const body = document.querySelector("#classes tbody"), filter = document.getElementById("filter");
function fill() {
  const wanted = filter.value.toLowerCase();
  const rows = data.classes.filter(([name]) => name.toLowerCase().includes(wanted)).slice(0, 300);
  body.replaceChildren(...rows.map(cells => {
    const row = document.createElement("tr");
    cells.forEach((cell, i) => {
      const td = document.createElement("td");
      td.textContent = i === 1 ? cell.toFixed(1) : cell;
      if (i) td.className = "value";
      row.append(td);
    });
    return row;
  }));
}
filter.addEventListener("input", fill);
fill();

// The map.
const canvas = document.getElementById("map"), tip = document.getElementById("tip"), pen = canvas.getContext("2d");
const { maps, classes, names } = data.map;
const picture = tip.querySelector("i");
picture.style.cssText = `width:${data.side}px;height:${data.side}px;zoom:2`;
if (data.sheet) picture.style.backgroundImage = `url(${data.sheet})`;
let shown = 0, pointed = -1, places = [];
const dark = matchMedia("(prefers-color-scheme: dark)");
// Neighbouring numbers get far colours: steps of the golden angle.
const colour = c => `hsl(${(c * 137.508) % 360} 70% ${(dark.matches ? 62 : 44) + (c % 3) * 5}%)`;

function draw() {
  const scale = window.devicePixelRatio || 1, wide = canvas.clientWidth, tall = canvas.clientHeight, edge = 12;
  canvas.width = wide * scale;
  canvas.height = tall * scale;
  pen.setTransform(scale, 0, 0, scale, 0, 0);
  const points = maps[shown].points;
  const right = Math.max(1, ...points.map(p => p[0])), top = Math.max(1, ...points.map(p => p[1]));
  const unit = Math.min((wide - 2 * edge) / right, (tall - 2 * edge) / top);
  const left = (wide - unit * right) / 2, under = (tall + unit * top) / 2;
  places = points.map(([x, y]) => [left + unit * x, under - unit * y]);
  const chosen = pointed < 0 ? -1 : classes[pointed];
  const dot = (i, size) => {
    pen.fillStyle = colour(classes[i]);
    pen.beginPath();
    pen.arc(...places[i], size, 0, 7);
    pen.fill();
  };
  pen.globalAlpha = chosen < 0 ? 0.8 : 0.25;
  places.forEach((_, i) => { if (classes[i] !== chosen) dot(i, 2.5); });
  pen.globalAlpha = 1;
  places.forEach((_, i) => { if (classes[i] === chosen) dot(i, 4.5); });
}

function point(event) {
  const box = canvas.getBoundingClientRect(), x = event.clientX - box.left, y = event.clientY - box.top;
  let best = -1, least = 15 * 15;
  places.forEach(([px, py], i) => {
    const far = (px - x) ** 2 + (py - y) ** 2;
    if (far < least) [best, least] = [i, far];
  });
  if (best === pointed) return;
  pointed = best;
  draw();
  tip.style.display = best < 0 ? "none" : "block";
  if (best < 0) return;
  const side = data.side, has = best < data.pictured;
  picture.style.display = has ? "block" : "none";
  if (has) {
    const at = [best % data.columns, Math.floor(best / data.columns)];
    picture.style.backgroundPosition = `-${at[0] * side}px -${at[1] * side}px`;
  }
  tip.lastChild.textContent = names[classes[best]];
  const [px, py] = places[best];
  tip.style.left = `${Math.max(0, Math.min(px + 12, canvas.clientWidth - tip.offsetWidth))}px`;
  tip.style.top = `${py + 12 + tip.offsetHeight > canvas.clientHeight ? Math.max(0, py - 12 - tip.offsetHeight) : py + 12}px`;
}
canvas.addEventListener("pointermove", point);
canvas.addEventListener("pointerdown", point);
canvas.addEventListener("pointerleave", () => { pointed = -1; tip.style.display = "none"; draw(); });
addEventListener("resize", draw);
dark.addEventListener("change", draw);

const buttons = maps.map((map, i) => {
  const button = document.createElement("button");
  button.textContent = map.title;
  button.onclick = () => {
    shown = i;
    buttons.forEach((other, j) => other.setAttribute("aria-pressed", String(i === j)));
    draw();
  };
  return button;
});
document.getElementById("maps").append(...buttons);
buttons[0].click();
