"""The graph-fusion network: channels in, logits out. ``model.build`` is the entrance and the diagram."""
