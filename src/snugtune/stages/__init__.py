"""The stages of a fit, in their order; ``snugtune/fit.py`` calls them."""
