"""Pictures of numbers, each with the numbers: chart (what one is), drawing (SVG and PNG), and what the stock tasks show."""
