"""Learned bridges between a frozen dense model and a weight-sparse one (Sec. 2.3, 3.3, App. A.3, A.4).

Importing this package registers the bridges' adapter type with PEFT.

Shapes, in every docstring of this package:

    B sequences, T tokens, D dense width, S sparse width, V vocabulary, L layers of either model, N tokens or vectors taken together

Symbols:

    x             token ids (B, T)
    site i        i = 0..2L: before sublayer i of both models, or (i = 2L) before the final norm. Sublayer 2l is the attention of layer l,
                  2l + 1 its MLP
    hd_i, hs_i    the residual at site i of the dense (B, T, D) and the sparse model (B, T, S), each run on x by itself
    yd, ys        their logits (B, T, V)
    f_i, g_i      encoder (D -> S; linear, bias, AbsTopK) and decoder (S -> D; linear, bias) of site i
    hybrid pass   a run that starts in one model and ends in the other; it switches at one site, its crossing

Bridging starts in train.py, `train_bridges`; in a job, jobs/bridge_stage.py calls it. One training step reads in this order: crossing.py,
losses.py, chunked_loss.py, train.py. Before it starts: tuner.py (the encoders and decoders as a PEFT adapter), pair.py (both models and
their bridges, saved and loaded), outliers.py (massive activations), basis.py, as_sparse.py, initialisation.py. After it: faithfulness.py
(how much of the dense model the sparse one reproduces on text), behaviour.py (whose behaviour a task is), steering/ (edits carried into
the dense model).
"""

from extractor.bridges.tuner import BridgeSite, SparseBridgeConfig, SparseBridgeModel, bridge_sites

__all__ = ["BridgeSite", "SparseBridgeConfig", "SparseBridgeModel", "bridge_sites"]
