"""The benchmarks, one file each; `eval.task.list_tasks` finds them."""
