// The script of report.html: picture, node card, token view and attention, joined by what the reader has chosen.

import { AttentionView } from "./attention";
import { Card } from "./card";
import { readData } from "./data";
import { Drawings } from "./drawings";
import { drawSoon, nodeLink } from "./elements";
import { LivePanel } from "./live";
import { bindNotes, Notes, refreshFields } from "./notes";
import { State } from "./state";
import { TokenView } from "./tokens";
import { Views } from "./view";

const pristine = document.documentElement.outerHTML; // before anything below changes it
const data = readData(), ids = new Set(data.nodes.map(node => node.id)), others = new Set(data.drawings?.more.map(node => node.id));
const state = new State(ids, others, data.tokens?.pairs.map(pair => pair.tokens[0].length) ?? [], data.drawings?.choices.length ?? 1);
const views = new Views(data), notes = new Notes(data.key, ids, pristine), card = new Card(data, state, views, notes);
const picture = new Drawings(data, state, views, notes, id => card.show(id));
const tokens = data.tokens && new TokenView(data, state, views), attention = data.tokens && new AttentionView(state, views);
const live = data.tokens && new LivePanel(state, views);

state.onChange((now, before) => {
  const ran = now.pair !== before.pair || now.typed !== before.typed || now.edits !== before.edits;
  if (ran || now.shown !== before.shown) {
    tokens?.draw();
    if (attention) drawSoon(attention.place, () => attention.draw());
  }
  if (ran) live?.draw();
  tokens?.mark();
  picture.update();
  if (now.node !== before.node) {
    card.show(now.node);
    if (now.node && !state.goesBack) picture.reveal(now.node);
  } else if (now.circuit !== before.circuit) card.show(now.node);
  else if (ran) card.refresh();
});
bindNotes(notes);
notes.onChange(() => picture.update());
notes.onChange(() => refreshFields(notes));
addEventListener("keydown", event => {
  if (event.key !== "Escape" || (event.target as Element).matches("textarea, select, input")) return;
  state.set(state.choice.node ? { node: null } : { token: null }); // first the card closes, then the token is let go
});
card.streams = () => picture.streams;
for (const link of document.querySelectorAll<HTMLAnchorElement>(".contents a")) {
  link.addEventListener("click", event => {
    if (event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault(); // the address keeps what is chosen, and a page without one stays where it is
    const heading = document.getElementById(link.getAttribute("href")!.slice(1))!, closed = heading.closest("details");
    if (closed) closed.open = true;
    heading.scrollIntoView();
    heading.tabIndex = -1;
    heading.focus({ preventScroll: true });
  });
}
for (const name of document.querySelectorAll<HTMLElement>("main > section code.id")) {
  if (ids.has(name.textContent!) && !name.closest("a, #heat, #card")) name.replaceWith(nodeLink(name.textContent!)); // nodes that tables and sentences name
}
Object.assign(globalThis, { circuit: views.circuit });
picture.update();
card.show(state.choice.node);
if (state.choice.node) picture.reveal(state.choice.node);
