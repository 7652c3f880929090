"""The Dockerfile can't be built here; what can be known without an engine is checked."""

import json
import re
import shutil
import tempfile
import tomllib
import unittest

from support import K8S, ROOT, TOOLS, run

TEXT = (ROOT / "deploy" / "Dockerfile").read_text()
CARGO = tomllib.loads((ROOT / "Cargo.toml").read_text())


class Dockerfile(unittest.TestCase):
    def test_hadolint_has_nothing_to_say(self):
        for file in (ROOT / "deploy").rglob("Dockerfile"):
            run(TOOLS / "hadolint", file)

    def test_the_toolchain_is_new_enough(self):
        version = re.search(r"^ARG RUST_IMAGE=rust:(\d+)\.(\d+)", TEXT, re.M).groups()
        needed = CARGO["package"]["rust-version"].split(".")[:2]
        self.assertGreaterEqual([int(part) for part in version], [int(part) for part in needed])

    def test_everything_that_the_build_reads_is_copied_and_nothing_more_is_sent(self):
        copied = {one for line in re.findall(r"^COPY (?!--from)(.*)$", TEXT, re.M) for one in line.split()[:-1]}
        sent = {line[1:] for line in (ROOT / "deploy" / "Dockerfile.dockerignore").read_text().split() if line[0] == "!"}
        self.assertEqual(copied, sent)
        for name in copied:
            self.assertTrue((ROOT / name).exists(), name)
        self.assertTrue("build.rs" in copied or not (ROOT / "build.rs").exists())
        for file in (ROOT / "src").rglob("*.rs"):
            for included in re.findall(r'include_(?:str|bytes)!\("([^"]+)"\)', file.read_text()):
                target = (file.parent / included).resolve().relative_to(ROOT)
                self.assertIn(target.parts[0], copied, f"{file} includes {included}")

    def test_cargo_finds_its_way_with_what_is_copied(self):
        with tempfile.TemporaryDirectory() as directory:
            for name in re.findall(r"^COPY (?!--from)(.*)$", TEXT, re.M):
                for one in name.split()[:-1]:
                    copy = shutil.copytree if (ROOT / one).is_dir() else shutil.copy
                    copy(ROOT / one, f"{directory}/{one}")
            seen = json.loads(run("cargo", "metadata", "--no-deps", "--locked", "--format-version=1", cwd=directory))
            targets = {kind for target in seen["packages"][0]["targets"] for kind in target["kind"]}
            # The soak is named with its path, which a build does not look for.
            self.assertEqual(targets, {"lib", "bin", "bench", "test"})

    def test_the_user_is_the_one_of_the_manifests(self):
        manifest = (K8S / "base" / "deployment.yaml").read_text()
        user = re.search(r"^USER (\d+):(\d+)$", TEXT, re.M).groups()
        self.assertIn(f"runAsUser: {user[0]}", manifest)
        self.assertIn(f"runAsGroup: {user[1]}", manifest)

    def test_the_tag_of_the_manifests_is_the_version(self):
        self.assertIn(f"image: outrigger:{CARGO['package']['version']}\n", (K8S / "base" / "deployment.yaml").read_text())


if __name__ == "__main__":
    unittest.main()
