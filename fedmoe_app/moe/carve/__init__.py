"""Turn a dense language model into a Mixture-of-Experts model that plain transformers loads.

Two methods, neither of which trains anything:

- ``copy``, sparse upcycling (Komatsuzaki et al., arXiv 2212.05055): every expert is the dense
  feed-forward layer, the router small and random. The outputs are those of the dense model.
- ``split``: the neurons of a feed-forward layer are divided. That neurons which are active together
  can be found and computed alone is MoEfication (Zhang et al., arXiv 2110.01786); splitting a
  pre-trained Llama is LLaMA-MoE (Zhu et al., arXiv 2406.16554); a shared expert of the neurons that
  are active on most tokens, equal groups by balanced assignment and a router without training are
  from CMoE (Pei et al., arXiv 2502.04416). The router here is a ridge regression, evened out along
  the mean input, and the down projections are solved anew by least squares.
"""
