"""One page on what an attack does to models: `analysis.report`. The room is not called like the function, see docs."""
