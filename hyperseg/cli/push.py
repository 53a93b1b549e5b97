"""Send a network to the Hugging Face Hub, with a model card.

FOLDER is what hyperseg.save or a training run (RUN/final) wrote. Its configuration, its weights and a card with
classes, scores, licence and commands become one commit of the repository OWNER/NAME, which is made if it does not
exist. Then hf-hub:OWNER/NAME is a name for --weights and for hyperseg.load.

A licence must be given, because only the owner of the weights knows it: the licence of this program does not extend to
them, and the terms of the data that they were trained on may restrict it, for example to non-commercial use.

Log in first, with a token for writing: hf auth login, or HF_TOKEN. HF_ENDPOINT is another address than
https://huggingface.co.

Exit codes: 0: done. 1: nothing was sent. 2: the command line is not valid. 130: interrupted.
"""

import argparse
import sys

from hyperseg._files import printable
from hyperseg.cli import _common
from hyperseg.cli._common import UsageError, user_errors
from hyperseg.cli._output import write_line


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the verb."""
    add, text = parser.add_argument, _common.text
    add("folder", metavar="FOLDER", type=text, help="a folder that hyperseg.save wrote, such as RUN/final")
    add("repository", metavar="OWNER/NAME", type=text, help="the repository; OWNER is your account or organisation")
    licence = "licence of the weights, as the Hub abbreviates it, such as apache-2.0, cc-by-nc-4.0 or other"
    add("--license", metavar="ID", type=text, required=True, help=licence)
    add("--license-link", metavar="URL", type=text, help="address of the licence's text; needed with --license other")
    scores = "scores for the card: what hyperseg eval --json wrote of these weights, or RUN/evaluation-SPLIT.json"
    add("--evaluation", metavar="FILE", type=text, help=scores)
    add("--private", action="store_true", help="if the repository is made, only its owner can see it")
    add("--replace-card", action="store_true", help="replace the card that is there, even if somebody edited it")
    add("--dry-run", action="store_true", help="print the card and send nothing")


def run(args: argparse.Namespace) -> int:
    """Run the verb; return the exit code."""
    from hyperseg.models import CheckpointError
    from hyperseg.models.hub import PREFIX
    from hyperseg.publish import PublishError, model_card, push, read_evaluation
    from hyperseg.publish.upload import load_folder, repository_name

    with user_errors(PublishError, to=UsageError):
        name = repository_name(args.repository)
    if args.license == "other" and args.license_link is None:
        raise UsageError("--license other needs --license-link URL, the address of its text")
    with user_errors(PublishError, CheckpointError):
        evaluation = None if args.evaluation is None else read_evaluation(args.evaluation)
        licence = (args.license, args.license_link)
        if args.dry_run:
            network, _ = load_folder(args.folder)
            print(model_card(network, name.repository, *licence, evaluation), end="")
            return 0
        done = push(args.folder, name.repository, *licence, evaluation, args.private, args.replace_card)
    if not done.changed:
        write_line(f"{done.url} has all of this already (commit {done.commit[:10]})", sys.stdout)
        return 0
    made = " (new)" if done.created else ""
    write_line(f"{args.folder} -> {printable(done.url)}{made}, commit {done.commit[:10]}", sys.stdout)
    write_line(f"try it: hyperseg predict IMAGE --weights {PREFIX}{name.repository}", sys.stdout)
    return 0
