import re
from pathlib import Path

README = Path(__file__).parents[3] / "crates_py" / "butterfly_text" / "README.md"


def test_the_example_in_the_readme_runs() -> None:
    examples = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)

    assert examples
    for example in examples:
        exec(compile(example, str(README), "exec"), {})
