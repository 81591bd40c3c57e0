from pathlib import Path

README = Path(__file__).parents[3] / "crates_py" / "butterfly_partition" / "README.md"


def test_the_example_in_the_readme_runs() -> None:
    example = README.read_text().split("```python\n")[1].split("```")[0]

    exec(compile(example, str(README), "exec"), {})
