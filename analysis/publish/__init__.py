"""For other people: model cards, the site."""
