//! What can be wrong with an engine, and which check must see it.

/// What is wrong with a [`FaultyEngine`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Defect {
    /// It takes an older generation without a word.
    TakesStale,
    /// It tells nobody of exits.
    LosesExits,
    /// It gives a Container another address in place.
    ChangesAddress,
    /// It recreates what could change in place.
    AlwaysRecreates,
    /// It never recreates.
    NeverRecreates,
    /// It stops while the drain goes on.
    StopsBeforeDetach,
    /// It starts the new Container beside the old one.
    DoubleStarts,
    /// It never hints.
    NeverHints,
    /// It runs everything again when a Fleet is applied again.
    Restless,
    /// It restarts every Instance when one is asked for.
    RestartsAll,
    /// It never takes an Instance away.
    KeepsSurplus,
    /// It cannot go back.
    CannotUndo,
    /// It takes a restart that was asked for as a crash.
    CountsRestarts,
    /// It starts what crashes again at once.
    NoBackoff,
    /// It attaches before anything is ready.
    AttachesEarly,
    /// It finds nothing after a restart.
    ForgetsAtRestart,
    /// It takes all Instances out at once.
    TakesAllOut,
    /// It forgets an App whose Instances run.
    ForgetsTooMuch,
    /// After a restart it stops without a drain what was attached before.
    ForgetsTraffic,
    /// After a restart it waits to be asked.
    WaitsToBeAsked,
    /// It stops the old one first where the new one could start beside it.
    NeverHandsOver,
    /// It lets two write to one volume.
    SharesVolumes,
    /// It keeps no Container frozen.
    NeverFreezes,
    /// It restarts for what needs no restart.
    RestartsForLimits,
    /// It restarts the App with its sidecar.
    RestartsWithSidecar,
    /// It knows nothing of an upload that broke off.
    ForgetsUploads,
    /// It puts bytes at the end of an upload, wherever they belong.
    TakesAnyPlace,
    /// It believes what an upload is called.
    TrustsUploads,
    /// It reads what it has.
    ReadsAgain,
    /// It adds what two senders send as it comes.
    MixesSenders,
    /// It names every layer where one is missing.
    NamesAllMissing,
    /// It makes another image each time.
    ComposesAnew,
    /// It makes what it was only asked about.
    ComposesInDryRuns,
    /// It leaves a name where it was.
    KeepsOldNames,
    /// It names an image by how its layers were sent.
    NamesBySending,
    /// It believes what a layer is called.
    TrustsLayers,
    /// It puts nothing below the layers.
    IgnoresBase,
    /// It does not keep what it composed.
    LosesComposed,
    /// It removes nothing.
    PrunesNothing,
    /// It removes what is needed.
    PrunesAll,
    /// It removes what runs.
    PrunesRunning,
    /// It removes what was used a moment ago.
    PrunesYoung,
    /// It removes an image that it was told is needed.
    RemovesNeeded,
    /// It passes over what is needed and not here yet.
    KeepsWhatIsHere,
    /// It removes more than it was asked to.
    RemovesMore,
    /// It finds no site.
    FindsNoSite,
    /// It does not look for the pages of a site.
    IgnoresPages,
    /// It removes an image of one of its Fleets.
    RemovesOfFleets,
    /// It cannot export, and gives an archive of nothing.
    PretendsToExport,
    /// It takes no answer of a registry for a no.
    AcceptsAnyLogin,
    /// It says that a login was accepted which nobody tried.
    TriesNoLogin,
    /// It blames the login when the registry is away.
    BlamesLogin,
    /// It makes another base each time.
    MakesBasesAnew,
    /// It makes some base, whichever was asked for.
    MakesAnyBase,
}

impl Defect {
    /// Every defect, with the check that is for it.
    pub const ALL: &'static [(Defect, &'static str)] = &[
        (Defect::TakesStale, "a_stale_generation_is_refused"),
        (Defect::LosesExits, "exit_codes_are_reported"),
        (Defect::ChangesAddress, "in_place_keeps_sandbox_and_address"),
        (Defect::AlwaysRecreates, "in_place_keeps_sandbox_and_address"),
        (Defect::NeverRecreates, "recreate_makes_another_sandbox"),
        (Defect::StopsBeforeDetach, "a_drain_ends_before_a_stop"),
        (Defect::DoubleStarts, "in_place_keeps_sandbox_and_address"),
        (Defect::NeverHints, "hints_arrive"),
        (Defect::Restless, "applying_again_changes_nothing"),
        (Defect::RestartsAll, "a_restart_of_one_touches_one"),
        (Defect::KeepsSurplus, "instances_come_and_go_with_the_scale"),
        (Defect::CannotUndo, "an_undo_brings_the_old_revision_back"),
        (Defect::CountsRestarts, "an_intended_restart_is_no_crash"),
        (Defect::NoBackoff, "a_crash_restarts_with_growing_back_off"),
        (Defect::AttachesEarly, "what_is_never_ready_gets_no_requests"),
        (Defect::ForgetsAtRestart, "a_restarted_engine_finds_everything"),
        (Defect::TakesAllOut, "one_of_two_stays_in_service"),
        (Defect::ForgetsTooMuch, "what_is_forgotten_is_gone"),
        (Defect::ForgetsTraffic, "a_restart_amid_an_upgrade_still_drains"),
        (Defect::WaitsToBeAsked, "a_restarted_engine_goes_on_unasked"),
        (Defect::NeverHandsOver, "a_handover_leaves_no_gap"),
        (Defect::NeverHandsOver, "the_old_one_serves_until_the_new_one_is_ready"),
        (Defect::SharesVolumes, "an_exclusive_volume_never_has_two_writers"),
        (Defect::NeverFreezes, "a_thaw_brings_the_same_container_back"),
        (Defect::RestartsForLimits, "an_update_keeps_the_container"),
        (Defect::RestartsWithSidecar, "a_sidecar_changes_alone"),
        (Defect::ForgetsUploads, "an_upload_goes_on_where_it_broke_off"),
        (Defect::TakesAnyPlace, "bytes_for_another_place_are_refused"),
        (Defect::TrustsUploads, "what_has_another_digest_is_not_kept"),
        (Defect::TrustsUploads, "what_is_longer_than_announced_is_not_kept"),
        (Defect::ReadsAgain, "an_upload_that_is_here_is_not_read_again"),
        (Defect::MixesSenders, "two_senders_of_one_upload_do_not_mix"),
        (Defect::NamesAllMissing, "compose_names_what_is_missing"),
        (Defect::NamesAllMissing, "a_layer_of_another_image_needs_no_upload"),
        (Defect::ComposesAnew, "the_same_request_makes_the_same_image"),
        (Defect::ComposesAnew, "the_same_request_may_be_made_at_once"),
        (Defect::ComposesInDryRuns, "a_dry_run_changes_nothing"),
        (Defect::KeepsOldNames, "a_name_is_of_the_image_that_got_it_last"),
        (Defect::NamesBySending, "how_a_layer_is_sent_makes_no_difference"),
        (Defect::TrustsLayers, "a_layer_that_is_not_what_was_sent_is_refused"),
        (Defect::IgnoresBase, "a_base_makes_another_image"),
        (Defect::IgnoresBase, "a_base_that_is_not_here_is_refused"),
        (Defect::RemovesMore, "a_composed_image_does_without_the_image_of_its_base"),
        (Defect::LosesComposed, "a_composed_image_outlives_the_engine_and_runs"),
        (Defect::PrunesNothing, "a_prune_leaves_what_is_needed"),
        (Defect::PrunesAll, "a_prune_leaves_what_is_needed"),
        (Defect::PrunesRunning, "a_prune_leaves_what_runs"),
        (Defect::PrunesYoung, "a_prune_of_what_is_old_leaves_the_rest"),
        (Defect::RemovesNeeded, "a_needed_image_is_removed_once_it_is_released"),
        (Defect::KeepsWhatIsHere, "an_image_may_be_needed_before_it_comes"),
        (Defect::RemovesOfFleets, "an_image_that_a_fleet_may_go_back_to_is_not_removed"),
        (Defect::FindsNoSite, "a_site_is_found_once_its_image_is_here"),
        (Defect::IgnoresPages, "a_site_that_lacks_a_page_is_refused"),
        (Defect::PretendsToExport, "export_is_refused_by_who_cannot_do_it"),
        (Defect::AcceptsAnyLogin, "a_wrong_login_is_denied"),
        (Defect::TriesNoLogin, "a_registry_without_logins_says_so"),
        (Defect::BlamesLogin, "a_registry_that_is_away_is_no_wrong_login"),
        (Defect::MakesBasesAnew, "an_installed_runtime_makes_the_same_base_again"),
        (Defect::MakesAnyBase, "a_runtime_that_is_not_installed_makes_no_base"),
    ];
}
