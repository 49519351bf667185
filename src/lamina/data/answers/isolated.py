"""Answers questions in a process with unpatched model classes: see `answered`.

python -m lamina.data.answers.isolated FOLDER
"""

import json
import sys
from pathlib import Path

from lamina.data.answers.answering import answer_questions
from lamina.data.answers.settings import AnswerSettings
from lamina.errors import LaminaError
from lamina.measure.engines import end_with_parent
from lamina.measure.protocol import ModelRef
from lamina.measure.separate import ANSWER_FILE, REQUEST_FILE
from lamina.runtime.files import write_json


def main() -> None:
    """Answer the questions of the request in the folder given on the command line."""
    end_with_parent()
    folder = Path(sys.argv[1])
    request = json.loads((folder / REQUEST_FILE).read_text())
    ref, settings = ModelRef(**request["ref"]), AnswerSettings(**request["settings"])
    try:
        answer_questions(Path(request["path"]), ref, settings, request["questions"])
    except LaminaError as error:
        write_json(folder / ANSWER_FILE, {"error": str(error)})
        return
    write_json(folder / ANSWER_FILE, {})


if __name__ == "__main__":
    main()
