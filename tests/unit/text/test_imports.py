import subprocess
import sys


def test_the_text_crate_never_loads_torch_or_transformers() -> None:
    ask = (
        "import butterfly_text.model, butterfly.demo_model, sys; "
        "print(*({'torch', 'transformers'} & set(sys.modules)))"
    )
    heard = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, check=True)

    assert heard.stdout.strip() == ""
