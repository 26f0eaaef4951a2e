// The picture as it is painted now, as a file: SVG, or PNG at twice its size.

import { download } from "./elements";

export function bindSaving(shown: () => SVGSVGElement): void {
  for (const button of document.querySelectorAll<HTMLButtonElement>("button[data-save]")) {
    button.addEventListener("click", () => (button.dataset.save === "svg" ? download(source(shown()), "circuit.svg") : savePng(shown())));
  }
}

const LINES = ["opacity", "visibility", "fill", "stroke", "stroke-width", "stroke-dasharray", "stroke-opacity"];
const SHAPES: Record<string, string[]> = { g: ["opacity", "visibility"], rect: LINES, path: LINES, text: ["opacity", "visibility", "fill", "text-decoration-line"] };

/** The picture as a data URL that needs no style sheet. */
export function source(svg: SVGSVGElement): string {
  const copy = svg.cloneNode(true) as SVGSVGElement, { width, height } = svg.viewBox.baseVal;
  copy.setAttribute("xmlns", "http://www.w3.org/2000/svg");
  copy.setAttribute("width", String(width));
  copy.setAttribute("height", String(height));
  copy.removeAttribute("style");
  const shown = svg.querySelectorAll<SVGElement>("g, rect, path, text"), copied = copy.querySelectorAll<SVGElement>("g, rect, path, text");
  shown.forEach((shape, i) => {
    const style = getComputedStyle(shape), kept = SHAPES[shape.tagName]!;
    copied[i]!.removeAttribute("style");
    for (const name of kept) copied[i]!.setAttribute(name, style.getPropertyValue(name));
  });
  return "data:image/svg+xml;charset=utf-8," + encodeURIComponent(new XMLSerializer().serializeToString(copy));
}

async function savePng(svg: SVGSVGElement): Promise<void> {
  const { width, height } = svg.viewBox.baseVal, image = new Image(), canvas = document.createElement("canvas");
  image.src = source(svg);
  await image.decode();
  [canvas.width, canvas.height] = [2 * width, 2 * height];
  const paper = canvas.getContext("2d")!;
  paper.fillStyle = getComputedStyle(svg.parentElement!).backgroundColor;
  paper.fillRect(0, 0, canvas.width, canvas.height);
  paper.drawImage(image, 0, 0, canvas.width, canvas.height);
  download(canvas.toDataURL("image/png"), "circuit.png");
}
