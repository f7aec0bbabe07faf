"""All that reads trained/ for people: states of trials, tables of results, comparisons, costs."""
