"""The HTML page of experiments (`carabid report`): section (what one is), a module for each, and page (all of them together)."""
