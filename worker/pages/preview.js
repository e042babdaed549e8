// The sheet of a preview: the slider of each picture, the variants, and the boxes.
"use strict";

function cut(frame, percent) {
  for (const over of frame.querySelectorAll(".over")) {
    over.style.clipPath = `inset(0 0 0 ${percent}%)`;
  }
  const edge = frame.querySelector(".edge");
  if (edge) edge.style.left = `calc(${percent}% - 1px)`;
}

function showVariant(number) {
  for (const part of document.querySelectorAll("[data-variant]")) {
    part.hidden = part.dataset.variant !== number;
  }
  for (const button of document.querySelectorAll("[data-choose]")) {
    button.setAttribute("aria-pressed", String(button.dataset.choose === number));
  }
}

for (const slider of document.querySelectorAll(".compare input[type=range]")) {
  const frame = slider.closest(".compare");
  slider.addEventListener("input", () => cut(frame, slider.value));
  cut(frame, slider.value);
}
for (const button of document.querySelectorAll("[data-choose]")) {
  button.addEventListener("click", () => showVariant(button.dataset.choose));
}
const boxes = document.getElementById("boxes");
boxes.addEventListener("click", () => {
  const shown = boxes.getAttribute("aria-pressed") !== "true";
  boxes.setAttribute("aria-pressed", String(shown));
  for (const drawing of document.querySelectorAll(".compare svg")) drawing.toggleAttribute("hidden", !shown);
});
const differing = document.getElementById("differing");
if (differing) {
  differing.addEventListener("click", () => {
    const only = differing.getAttribute("aria-pressed") !== "true";
    differing.setAttribute("aria-pressed", String(only));
    for (const card of document.querySelectorAll("[data-same]")) card.hidden = only;
  });
}
showVariant("0");
