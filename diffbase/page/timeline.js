// What lives at the instant under the pointer, or under the cursor that the arrow keys move. Every instant says it
// itself, in its title, so that without this script a browser shows the same when the pointer rests there.
for (const chart of document.querySelectorAll(".timeline")) {
  const plot = chart.querySelector(".plot"), readout = chart.querySelector(".readout");
  const colors = {};
  for (const area of plot.querySelectorAll("[data-name]")) colors[area.dataset.name] = area.getAttribute("fill");
  const spots = [...plot.querySelectorAll(".spot")].map((spot) => {
    const title = spot.querySelector("title");
    title.remove();
    return { x: Number(spot.dataset.x), lines: title.textContent.split("\n").map((line) => line.split("\t")) };
  });
  const now = document.createElement("div");
  now.className = "now";
  let at = Number(plot.querySelector("[data-peak]").dataset.peak);

  const row = ([name, value, of]) => {
    const line = document.createElement("div"), words = document.createElement("span");
    const color = colors[of];
    if (color) {
      const dot = document.createElement("i");
      dot.className = "dot";
      dot.style.background = color;
      line.append(dot);
    } else line.className = "head";
    words.className = "what";
    words.textContent = words.title = name;
    line.append(words);
    if (value) {
      const number = document.createElement("span");
      number.className = "n";
      number.textContent = value;
      line.append(number);
    }
    return line;
  };
  const show = (which) => {
    at = Math.max(0, Math.min(spots.length - 1, which));
    now.style.left = spots[at].x / 10 + "%";
    plot.append(now);
    readout.replaceChildren(...spots[at].lines.map(row));
  };
  const nearest = (x) => {
    let best = 0;
    for (const [i, spot] of spots.entries()) if (Math.abs(spot.x - x) < Math.abs(spots[best].x - x)) best = i;
    return best;
  };
  const point = (event) => {
    const box = plot.getBoundingClientRect();
    show(nearest((1000 * (event.clientX - box.left)) / box.width));
  };
  plot.addEventListener("pointermove", point);
  plot.addEventListener("pointerdown", point);
  plot.addEventListener("keydown", (event) => {
    const to = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: spots.length - 1 }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    show(to);
  });
}
