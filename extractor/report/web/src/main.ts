// The script of report.html: picture, node card, token view and attention, joined by what the reader has chosen.

import { AttentionView } from "./attention";
import { Card } from "./card";
import { readData } from "./data";
import { Picture } from "./picture";
import { State } from "./state";
import { TokenView } from "./tokens";

const data = readData();
const state = new State(new Set(data.nodes.map(node => node.id)), data.tokens?.pairs.map(pair => pair.tokens[0].length) ?? []);
const card = new Card(data, state);
const picture = new Picture(data, state, id => card.show(id));
const tokens = data.tokens && new TokenView(data, state), attention = data.tokens && new AttentionView(data, state);

state.onChange((now, before) => {
  if (now.pair !== before.pair || now.shown !== before.shown) {
    tokens?.draw();
    attention?.draw();
  }
  tokens?.mark();
  picture.update();
  if (now.node !== before.node) {
    card.show(now.node);
    if (now.node) picture.reveal(now.node);
  }
});
addEventListener("keydown", event => {
  if (event.key === "Escape") state.set({ node: null, token: null });
});
picture.update();
card.show(state.choice.node);
if (state.choice.node) picture.reveal(state.choice.node);
