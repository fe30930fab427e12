// Unpack plotly.js and draw every plot; where that fails the notes stay, and the tables tell all.
(async () => {
  const packed = document.getElementById("plotly").textContent.trim();
  const bytes = Uint8Array.from(atob(packed), (character) => character.charCodeAt(0));
  const unpacked = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  const script = document.createElement("script");
  script.textContent = await new Response(unpacked).text();
  document.head.append(script);

  const config = {
    responsive: true,
    displaylogo: false,
    modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"],
  };
  const plots = [...document.querySelectorAll(".plot")];
  for (const element of plots) {
    const figure = JSON.parse(document.getElementById(`${element.id}-data`).textContent);
    element.replaceChildren();
    await Plotly.newPlot(element, figure.data, figure.layout, config);
  }
  // Paper is narrower than most windows, and a plot keeps its width until it is told.
  const resize = (width) => plots.forEach((plot) => Plotly.relayout(plot, { width }));
  addEventListener("beforeprint", () => resize(680));
  addEventListener("afterprint", () => resize(null));
  document.documentElement.dataset.plots = "drawn";
})().catch((error) => {
  document.documentElement.dataset.plots = "failed";
  console.error("the plots cannot be drawn:", error);
});
