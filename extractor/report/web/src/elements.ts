// Elements, token texts and numbers. All text is set as text, never as HTML.

import { STEPS } from "./data";

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
export const nats = (value: number): string => value.toFixed(3);
export const signed = (value: number): string => (value > 0 ? "+" : "") + String(value);
export const short = (value: number): string => String(Number(value.toPrecision(3)));

/** A colour for a deviation of -STEPS to STEPS: blue above the mean, orange below, nothing at it. Behind text `most` is 0.4. */
export function tint(step: number, most = 0.85): string {
  const strength = Math.min(1, Math.abs(step) / STEPS);
  return strength < 0.01 ? "transparent" : `rgb(${step > 0 ? "var(--above)" : "var(--below)"} / ${(most * strength).toFixed(3)})`;
}

export function nodeLink(id: string): HTMLAnchorElement {
  const link = make("a", "id", make("code", "id", id));
  link.setAttribute("href", "#node=" + encodeURIComponent(id));
  return link;
}
