// Elements, token texts and numbers. All text is set as text, never as HTML.

import { STEPS } from "./data";

export const LATER = 80; // milliseconds
const waiting = new Map<Element, ReturnType<typeof setTimeout>>();
const inWindow = new Map<Element, boolean>(); // asked of an observer: to measure an element now would lay out the page at every change
const observer = new IntersectionObserver(entries => entries.forEach(entry => inWindow.set(entry.target, entry.isIntersecting)));

/** Draw what is in the window now, all else after the next frames. */
export function drawSoon(place: Element, draw: () => void): void {
  clearTimeout(waiting.get(place));
  if (!inWindow.has(place)) {
    inWindow.set(place, true);
    observer.observe(place);
  }
  if (inWindow.get(place)) draw();
  else waiting.set(place, setTimeout(draw, LATER));
}

type Part = Node | string | null | undefined | false;

export function make<K extends keyof HTMLElementTagNameMap>(tag: K, className = "", ...parts: Part[]): HTMLElementTagNameMap[K] {
  const found = document.createElement(tag);
  if (className) found.className = className;
  for (const part of parts) if (part) found.append(part);
  return found;
}

/** As `report.html.percent`: a fraction below 1 never shows as 100 %. */
export function percent(value: number): string {
  const text = (100 * value).toFixed(1).replace(/\.0$/, "");
  return `${text === "100" && value < 1 ? "99.9" : text} %`;
}

/** As `report.picture.visible`: spaces become '·', characters that do not print their escapes. */
export function visible(text: string): string {
  return Array.from(text, c => (c === " " ? "·" : /[\p{C}\p{Z}]/u.test(c) ? escaped(c) : c)).join("");
}
function escaped(c: string): string {
  const short: Record<string, string> = { "\n": "\\n", "\r": "\\r", "\t": "\\t" }, code = c.codePointAt(0)!.toString(16);
  return short[c] ?? (code.length <= 2 ? `\\x${code.padStart(2, "0")}` : code.length <= 4 ? `\\u${code.padStart(4, "0")}` : `\\U${code.padStart(8, "0")}`);
}
/** A probability: neither 0 nor 1 is ever shown for what is not. */
export const chance = (value: number): string => (value < 0.0005 ? "<0.1 %" : value > 0.9995 ? ">99.9 %" : percent(value));
export const nats = (value: number): string => value.toFixed(3);
export const signed = (value: number): string => (value > 0 ? "+" : "") + String(value);
export const short = (value: number): string => String(Number(value.toPrecision(3)));

/** A colour for a deviation of -STEPS to STEPS: blue above the mean, orange below, nothing at it. Behind text `most` is 0.4. */
export function tint(step: number, most = 0.85): string {
  const strength = Math.min(1, Math.abs(step) / STEPS);
  return strength < 0.01 ? "transparent" : `rgb(${step > 0 ? "var(--above)" : "var(--below)"} / ${(most * strength).toFixed(3)})`;
}

/** Give the reader a file. */
export function download(url: string, name: string): void {
  const link = document.createElement("a");
  link.setAttribute("href", url);
  link.download = name;
  link.click();
}

export function nodeLink(id: string): HTMLAnchorElement {
  const link = make("a", "id", make("code", "id", id));
  link.setAttribute("href", "#node=" + encodeURIComponent(id));
  return link;
}

/** How likely an answer is: a bar, and a mark where it is without the changes. */
export function answerBar(share: number, plain: number, words: string): HTMLElement {
  const filled = make("i"), mark = make("b");
  filled.style.width = `${100 * share}%`;
  mark.style.left = `${100 * plain}%`;
  const bar = make("span", "answer-bar", filled, mark);
  bar.setAttribute("role", "img");
  bar.setAttribute("aria-label", `${chance(share)} for ${words}, ${chance(plain)} without changes`);
  return bar;
}
