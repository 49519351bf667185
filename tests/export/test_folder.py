"""The files of final/: the tokenizer's templates, config.json, and which form is exact."""

import json
import shutil
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from lamina.data.chat.template import choose_template
from lamina.depth.loading import load_tokenizer
from lamina.depth.plan import make_plan
from lamina.depth.reduction import reduction
from lamina.depth.variants import Layers, Original
from lamina.errors import ConfigError
from lamina.export.final import Export
from lamina.export.folder import keep_config_form, write_tokenizer
from lamina.export.loadable import loadable
from lamina.weights.source import resolve
from tests.architectures import save
from tests.conftest import REFERENCE, no_scores

TOOLS, CHAT = "{{ messages[0].content }}", "{{ messages[-1].content }}"


def in_files(folder: Path) -> None:
    """As transformers 5 saves named templates."""
    further = folder / "additional_chat_templates"
    further.mkdir()
    (folder / "chat_template.jinja").write_text(CHAT)
    (further / "tool_use.jinja").write_text(TOOLS)


def in_a_list(folder: Path) -> None:
    """As transformers 4 saved them."""
    (folder / "chat_template.jinja").unlink()
    path = folder / "tokenizer_config.json"
    named = [{"name": "default", "template": CHAT}, {"name": "tool_use", "template": TOOLS}]
    path.write_text(json.dumps({**json.loads(path.read_text()), "chat_template": named}))


@pytest.mark.parametrize("place", [in_files, in_a_list])
def test_named_chat_templates_stay_beside_the_chosen_one(place: object, tmp_path: Path) -> None:
    shutil.copytree(REFERENCE, tmp_path / "source")
    assert callable(place)
    place(tmp_path / "source")
    source = resolve(str(tmp_path / "source"))
    tokenizer = choose_template(load_tokenizer(source), "tool_use")
    final = tmp_path / "final"
    final.mkdir()
    write_tokenizer(final, tokenizer, source)
    found = AutoTokenizer.from_pretrained(final).chat_template
    assert found == {"default": TOOLS, "tool_use": TOOLS, "source_default": CHAT}
    listed = json.loads((final / "tokenizer_config.json").read_text()).get("chat_template")
    if listed is not None:  # older versions and other engines read these
        assert {each["name"]: each["template"] for each in listed} == found
    assert (listed is None) == (place is in_files)


def test_a_saved_config_declares_no_heads_for_multi_token_prediction(tmp_path: Path) -> None:
    folder = save("llama", tmp_path / "model")
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "num_nextn_predict_layers": 1}))
    whole = reduction(resolve(str(folder)), range(6))
    assert whole.content["num_nextn_predict_layers"] == 1
    keep_config_form(folder, whole, whole.config, "float32")
    assert json.loads(path.read_text())["num_nextn_predict_layers"] == 0


WHOLE = (
    "export.form=adapter: transformers would load the adapter onto the whole multimodal model; "
    "choose export.form=merged or auto"
)
MIXED = (
    "export.form=adapter: an adapter cannot rebuild drop-1,4 of this architecture exactly; "
    "choose export.form=merged or auto"
)


@pytest.mark.parametrize(
    ("model_type", "drop", "message"),
    [
        ("qwen3_5", [], WHOLE),
        ("qwen3_5", [1, 4], WHOLE),
        ("gemma3_text", [1, 4], MIXED),
        ("gemma3_text", [], None),
        ("llama", [1, 4], None),
    ],
)
def test_an_adapter_alone_is_refused_with_its_reason(
    model_type: str, drop: list[int], message: str | None, tmp_path: Path
) -> None:
    folder = save(model_type, tmp_path / "model")
    variant = Layers(keep=None, drop=drop) if drop else Original()
    plan = make_plan(variant, str(folder), no_scores)
    forms = {form: Export(form=form, dtype="auto") for form in ("auto", "merged", "adapter")}
    given = {"has_adapter": True, "is_loadable": True}
    assert forms["merged"].form_of(plan, **given) == "merged"
    assert forms["auto"].form_of(plan, **given) == ("merged" if message else "adapter")
    assert forms["auto"].form_of(plan, has_adapter=True, is_loadable=False) == "merged"
    assert forms["auto"].form_of(plan, has_adapter=False, is_loadable=False) == "model"
    if message is None:
        assert forms["adapter"].form_of(plan, **given) == "adapter"
        return
    with pytest.raises(ConfigError) as raised:
        forms["adapter"].form_of(plan, **given)
    assert str(raised.value) == message


def test_a_model_is_loaded_as_stored_if_its_config_names_no_type(tmp_path: Path) -> None:
    folder = save("llama", tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "dtype": None}))
    assert loadable(str(folder), "auto").ref.dtype == "float32"
    for name in ("model.safetensors", "config.json"):
        shutil.copy(REFERENCE / name, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "dtype": None}))
    assert loadable(str(folder), "auto").ref.dtype == "bfloat16"
    assert loadable(str(folder), "float32").ref.dtype == "float32"
