"""Each config of the bundle runs, at small sizes. Run in the zoo's root."""

import sys
import tempfile
import unittest
from pathlib import Path

from monai.bundle import create_workflow
from parameterized import parameterized

BUNDLE_ROOT = Path("models/spheres_latent_diffusion")

# an eighth of the volume, seconds on a CPU
TRAINING = {"image_size": 32, "epochs": 1, "train_size": 8, "train_batch_size": 4, "val_size": 2, "val_interval": 1}

TEST_CASE_TRAIN_AUTOENCODER = [["train_autoencoder"], TRAINING, ["model_autoencoder.pt"]]
TEST_CASE_TRAIN_DIFFUSION = [["train_diffusion"], TRAINING, ["model.pt"]]
TEST_CASE_INFERENCE = [
    ["inference"],
    {"num_samples": 2, "num_inference_steps": 2},
    ["sphere_00000.nii.gz", "sphere_00001.nii.gz", "samples.csv"],
]
TEST_CASE_EVALUATE = [
    ["evaluate"],
    {"test_size": 2, "num_samples": 2, "num_inference_steps": 2, "diversity_size": 2, "classifier_epochs": 1},
    ["fidelity.json"],
]


class TestSpheresLatentDiffusion(unittest.TestCase):
    """The two trainings, inference and evaluation, with what they write."""

    def check(self, workflow_type, configs, override, files):
        """Run a workflow into a folder of its own."""
        if str(BUNDLE_ROOT) not in sys.path:
            sys.path.insert(0, str(BUNDLE_ROOT))
        with tempfile.TemporaryDirectory() as output_dir:
            workflow = create_workflow(
                workflow_type=workflow_type,
                config_file=[str(BUNDLE_ROOT / "configs" / f"{name}.json") for name in configs],
                logging_file=str(BUNDLE_ROOT / "configs" / "logging.conf"),
                meta_file=str(BUNDLE_ROOT / "configs" / "metadata.json"),
                bundle_root=str(BUNDLE_ROOT),
                output_dir=output_dir,
                **override,
            )
            self.assertEqual(workflow.check_properties(), [])
            workflow.run()
            workflow.finalize()
            written = {path.name for path in Path(output_dir).iterdir()}
            self.assertLessEqual(set(files), written)

    @parameterized.expand([TEST_CASE_TRAIN_AUTOENCODER, TEST_CASE_TRAIN_DIFFUSION])
    def test_train(self, configs, override, files):
        """A training leaves its weights."""
        self.check("train", configs, override, files)

    @parameterized.expand([TEST_CASE_INFERENCE, TEST_CASE_EVALUATE])
    def test_infer(self, configs, override, files):
        """Volumes and scores come from the released weights."""
        self.check("infer", configs, override, files)


if __name__ == "__main__":
    unittest.main()
