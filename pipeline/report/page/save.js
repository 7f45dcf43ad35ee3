// Save what a chart shows: its points as a table, or its picture.
"use strict";

function download(blob, name) {
  const link = make("a", { download: name, href: URL.createObjectURL(blob) });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

const fileName = (chart, kind) => `${known.runs.map((run) => run.name).join("-").slice(0, 80)}-${view.stage ?? shownStage()}-${chart.name}.${kind}`;
// A text as a cell. A spreadsheet would compute one that begins like a formula.
const cell = (text) => (/^[\w.+-]*$/.test(text) && !/^[=@+-]\D/.test(text) ? text : `"${(/^[=@+-]/.test(text) ? "'" : "") + text.replaceAll('"', '""')}"`);

// The points that the chart shows, as they were measured, each with everything that the x-axis can count.
function csvOf(chart) {
  const stage = shownStage(), counts = ["tokens", "time", "dollars"];
  const lines = ["run,stage,metric,step,tokens,seconds,dollars,value"];
  for (const one of chart.series) {
    if (!one.label) continue;
    const run = known.runs[one.run], [first, end] = chart.visible(one);
    const others = counts.map((name) => AXES[name].of(run, stage));
    for (let i = first; i < end; i++) {
      const point = [one.step[i], one.measured[i], one.when[i]];
      const found = others.map((of, n) => (of ? Number(of(point).toFixed([0, 1, 6][n])) : ""));
      lines.push([cell(run.name), stage, one.name, point[0], ...found, point[1]].join(","));
    }
  }
  return `${lines.join("\n")}\n`;
}

function saveCsv(chart) {
  download(new Blob([csvOf(chart)], { type: "text/csv" }), fileName(chart, "csv"));
}

const DRAWN = ["fill", "stroke", "stroke-width", "stroke-dasharray", "stroke-linejoin", "opacity", "fill-opacity", "font-size", "font-family"];

// The chart with its title and legend as one SVG file, which needs no style of the page.
function svgOf(chart) {
  const svg = chart.plot.querySelector("svg"), copy = svg.cloneNode(true);
  const width = chart.plot.clientWidth, height = chart.plot.clientHeight;
  const styles = getComputedStyle(chart.element), ink = styles.color, font = styles.fontFamily;
  const own = [...svg.querySelectorAll("*")];
  [...copy.querySelectorAll("*")].forEach((element, i) => {
    const style = getComputedStyle(own[i]);
    for (const name of DRAWN) if (style[name]) element.setAttribute(name, style.getPropertyValue(name));
    element.removeAttribute("class");
  });
  copy.querySelectorAll("svg")[0].setAttribute("overflow", "hidden");
  const words = (x, y, text) => draw("text", { x, y, fill: ink, "font-size": 13, "font-family": font }, text);
  const runs = known.runs.length === 1 ? `${known.runs[0].name}: ` : "";
  const items = [...chart.legend.children].map((item) => [item.textContent, getComputedStyle(item.querySelector("i")).backgroundColor]);
  const picture = draw("svg", { xmlns: SVG, width: width + 24, height: height + 40 + 20 * items.length });
  picture.append(draw("rect", { width: "100%", height: "100%", fill: styles.backgroundColor }), words(12, 22, `${runs}${STAGES[shownStage()]}, ${chart.title.textContent}`));
  copy.setAttribute("x", 12);
  copy.setAttribute("y", 32);
  copy.setAttribute("width", width);
  copy.setAttribute("height", height);
  picture.append(copy);
  items.forEach(([text, color], i) => picture.append(draw("rect", { x: 12, y: height + 38 + 20 * i, width: 11, height: 11, fill: color }), words(30, height + 48 + 20 * i, text)));
  return picture;
}

async function pngOf(chart) {
  const picture = svgOf(chart), image = new Image(), sharp = 2;
  image.src = `data:image/svg+xml;charset=utf-8,${encodeURIComponent(new XMLSerializer().serializeToString(picture))}`;
  await image.decode();
  const canvas = make("canvas", {});
  canvas.width = sharp * picture.getAttribute("width");
  canvas.height = sharp * picture.getAttribute("height");
  canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
  return new Promise((done) => canvas.toBlob(done, "image/png"));
}

async function savePng(chart) {
  if (chart.series.length) download(await pngOf(chart), fileName(chart, "png"));
}
