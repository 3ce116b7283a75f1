"""A paper of somebody's own, outside the package: a recipe, two figures and a model that it trains."""
