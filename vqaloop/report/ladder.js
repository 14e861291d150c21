"use strict";
// two pictures of one place, one over the other, cut where the slider stands
for (const place of document.querySelectorAll(".place")) {
  const stage = place.querySelector(".stage");
  const slider = place.querySelector("input");
  const [left, right] = place.querySelectorAll("select");
  const pictures = [...stage.querySelectorAll("img")];
  const [leftName, rightName] = stage.querySelectorAll("span");
  const show = () => {
    for (const picture of pictures) {
      const rung = picture.dataset.rung;
      picture.className = rung === left.value ? "left" : rung === right.value ? "right" : "";
    }
    leftName.textContent = left.selectedOptions[0].dataset.name;
    rightName.textContent = right.selectedOptions[0].dataset.name;
    stage.style.setProperty("--cut", slider.value + "%");
  };
  const follow = (event) => {
    const box = stage.getBoundingClientRect();
    slider.value = Math.round(100 * (event.clientX - box.left) / box.width);
    show();
  };
  stage.addEventListener("pointerdown", (event) => {
    stage.setPointerCapture(event.pointerId);
    follow(event);
  });
  stage.addEventListener("pointermove", (event) => {
    if (event.buttons) follow(event);
  });
  slider.addEventListener("input", show);
  left.addEventListener("change", show);
  right.addEventListener("change", show);
  // a browser may keep what was chosen when the page is loaded again
  show();
}
// commands are copied whole
for (const command of document.querySelectorAll("pre")) {
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = "Copy";
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(command.textContent);
      button.textContent = "Copied";
    } catch {
      getSelection().selectAllChildren(command);
      button.textContent = "Selected";
    }
    setTimeout(() => { button.textContent = "Copy"; }, 2000);
  });
  command.before(button);
}
