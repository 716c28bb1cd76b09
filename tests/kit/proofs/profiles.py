"""The profile of an engine and the labs on deployments against values by hand."""

from __future__ import annotations

from engine.test_profile import test_a_request_waits_before_and_between_the_steps_that_it_takes_part_in as request
from engine.test_profile import test_what_calls_inside_take_is_not_counted_twice as clocks
from labs.test_deployment_labs import Wrong
from labs.test_deployment_labs import test_a_target_is_met_by_first_tokens_or_gaps_or_both as met
from labs.test_deployment_labs import test_logits_that_are_heard_are_those_of_the_whole_text as heard
from labs.test_deployment_labs import test_numbers_sorted_are_counted as sorting
from labs.test_deployment_labs import test_requests_in_flight_are_counted_by_looking as in_flight
from labs.test_deployment_labs import test_rungs_can_be_left_out_as_long_as_nothing_stands_on_them as rungs
from labs.test_deployment_labs import test_the_knee_lies_between_two_rates as knee
from labs.test_deployment_labs import test_the_virtual_clock_goes_on_by_what_steps_last as virtual
from labs.test_deployment_labs import test_tokens_computed_again_by_hand as repeated


def guessed() -> None:
    """With guesses that are wrong."""
    heard(Wrong())


PROOFS = {
    "profile clocks": clocks, "profile request": request, "diagnosis repeated": repeated, "diagnosis sorting": sorting,
    "ladder heard": guessed, "ladder rungs": rungs, "targets in flight": in_flight, "targets met": met,
    "targets knee": knee, "targets clock": virtual,
}  # fmt: skip
