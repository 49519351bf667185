"""Tasks: what a model answers, and how likely it finds what is right, item by item.

`items.read_tasks(names, settings)` reads and checks the items, without torch; then
`scoring.evaluate_tasks(model, tokenizer, tasks, settings, done=, write=, original=)` returns the
result of each task. `files` has their forms.
"""
