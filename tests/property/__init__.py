"""Properties, searched for counter-examples by hypothesis."""
