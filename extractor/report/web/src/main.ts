// The script of report.html: picture, node card, token view and attention, joined by what the reader has chosen.

import { AttentionView } from "./attention";
import { Card } from "./card";
import { readData } from "./data";
import { drawSoon } from "./elements";
import { LivePanel } from "./live";
import { Picture } from "./picture";
import { State } from "./state";
import { TokenView } from "./tokens";
import { Views } from "./view";

const data = readData();
const state = new State(new Set(data.nodes.map(node => node.id)), data.tokens?.pairs.map(pair => pair.tokens[0].length) ?? []);
const views = new Views(data), card = new Card(data, state, views);
const picture = new Picture(data, state, views, id => card.show(id));
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
    if (now.node) picture.reveal(now.node);
  } else if (ran) card.refresh();
});
addEventListener("keydown", event => {
  if (event.key === "Escape" && !(event.target as Element).matches("textarea, select, input")) state.set({ node: null, token: null });
});
Object.assign(globalThis, { circuit: views.circuit });
picture.update();
card.show(state.choice.node);
if (state.choice.node) picture.reveal(state.choice.node);
