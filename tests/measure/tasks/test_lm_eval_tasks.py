"""What lm-eval says of each item, read without lm-eval."""

from lamina.measure.tasks.files import Metric
from lamina.measure.tasks.lm_eval_tasks import _items, _metrics


def test_only_a_score_of_0_or_1_says_whether_an_answer_is_right() -> None:
    """truthfulqa_mc2's acc is a share of the probability."""
    given = [{"acc": 1.0, "acc_norm": 0.0}, {"acc": 0.31, "acc_norm": 1.5}, {"exact_match": 0.0}]
    rows = [{"filter": "none", "filtered_resps": [(-1.0, False)], **scores} for scores in given]
    found = [(item.correct, item.correct_norm) for item in _items("task", {"task": rows})]
    assert found == [(True, False), (None, None), (False, None)]


def test_the_library_says_whether_less_of_a_metric_is_better() -> None:
    found = {
        "samples": {"wikitext": [{"filter": "none"}] * 3},
        "results": {"wikitext": {"alias": "wikitext", "bits_per_byte,none": 0.5}},
        "higher_is_better": {"wikitext": {"bits_per_byte": False}},
    }
    bits = Metric(value=0.5, stderr=None, n=3, higher_is_better=False)
    assert _metrics(found) == {"bits_per_byte": bits}
