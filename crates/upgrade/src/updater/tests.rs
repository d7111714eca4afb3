//! The way of one host as tables and stories, and its invariants whatever happens.

use super::*;
use proptest::prelude::*;
use std::collections::BTreeMap;
use types::{Code, Extra, name::ClusterId, update::Wave};

const CONFIRM: Duration = Duration::from_secs(300);

fn v(text: &str) -> Version {
    text.parse().unwrap()
}

fn at(seconds: u64) -> Time {
    Time::from_unix(1_800_000_000).plus(Duration::from_secs(seconds))
}

fn digest(seed: u8) -> Sha256 {
    Sha256::new([seed; 32])
}

fn id(number: u128) -> HostId {
    HostId::from_uuid(uuid::Uuid::from_u128(number))
}

/// The archive of a release, by its version: another for each.
fn archive_of(version: &Version) -> Sha256 {
    digest(version.to_string().bytes().fold(7, |sum: u8, byte| sum.wrapping_mul(31).wrapping_add(byte)))
}

fn offer(version: &str) -> Offer {
    let version = v(version);
    Offer {
        edition: "lockgate".into(),
        os: "linux".into(),
        arch: "amd64".into(),
        file: format!("lockgate-{version}-linux-amd64.tar.gz"),
        archive: archive_of(&version),
        size: 10,
        program: digest(9),
        minimum_source: Version::new(version.major().saturating_sub(1), 0, 0),
        denied_sources: BTreeMap::new(),
        version,
    }
}

fn target(version: &str) -> Target {
    Target {
        hosts: BTreeSet::new(),
        roles: BTreeSet::new(),
        wave: None,
        version: v(version),
        artifacts: [("linux/amd64".to_owned(), archive_of(&v(version)))].into(),
        retry: false,
        extra: Extra::new(),
    }
}

fn directive(generation: u64, targets: Vec<Target>) -> Directive {
    Directive {
        format: 1,
        cluster: ClusterName::new("acme").unwrap(),
        cluster_id: ClusterId::from_uuid(uuid::Uuid::nil()),
        generation,
        issued: at(0),
        expires: at(1_000_000),
        targets,
        extra: Extra::new(),
    }
}

/// One host, and the world around it.
struct World {
    cluster: ClusterName,
    roles: BTreeSet<SystemRole>,
    installed: Installed,
    book: Book,
    directive: Option<Directive>,
    offers: Result<Vec<Offer>, String>,
    now: u64,
}

impl World {
    fn new(installed: &str, directive: Option<Directive>, offers: &[&str]) -> Self {
        Self {
            cluster: ClusterName::new("acme").unwrap(),
            roles: [SystemRole::Node].into(),
            installed: Installed { version: v(installed), archive: None },
            book: Book::default(),
            directive,
            offers: Ok(offers.iter().map(|version| offer(version)).collect()),
            now: 0,
        }
    }

    fn host(&self) -> Host<'_> {
        Host { id: id(1), cluster: &self.cluster, roles: &self.roles, edition: "lockgate", os: "linux", arch: "amd64" }
    }

    fn patience() -> Patience {
        Patience { confirm: CONFIRM, ..Patience::default() }
    }

    fn next(&self) -> Step {
        next(&Case {
            host: self.host(),
            installed: &self.installed,
            book: &self.book,
            directive: self.directive.as_ref(),
            offers: self.offers.as_deref().map_err(String::as_str),
            patience: Self::patience(),
            now: at(self.now),
        })
    }

    fn tell(&mut self, event: Event) {
        self.book = std::mem::take(&mut self.book).after(event, &Self::patience(), at(self.now));
    }

    /// Does what is to be done, as far as the switch.
    fn up_to_switch(&mut self) -> Job {
        for _ in 0..4 {
            match self.next() {
                Step::Fetch(job) => self.tell(Event::Fetched(job)),
                Step::Stage(job) => self.tell(Event::Staged(job)),
                Step::Test(job) => self.tell(Event::Tested(job, Verdict::Passed)),
                Step::Switch(job) => {
                    let from =
                        std::mem::replace(&mut self.installed, Installed { version: job.version.clone(), archive: Some(job.archive) });
                    self.tell(Event::Switched { job: job.clone(), from, boot: "old".into() });
                    return job;
                }
                other => panic!("{other:?}"),
            }
        }
        panic!("never switched: {:?}", self.book);
    }

    fn refusal(&self) -> Refusal {
        match self.next() {
            Step::Refuse(refusal) => refusal,
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_host_goes_step_by_step_to_the_release_that_both_sides_allow() {
    let mut world = World::new("1.0.0", Some(directive(3, vec![target("1.1.0")])), &["1.0.0", "1.1.0"]);
    let job = world.up_to_switch();
    assert_eq!((&job.version, job.archive, job.generation), (&v("1.1.0"), archive_of(&v("1.1.0")), 3));
    assert!(matches!(world.next(), Step::Look(_)));
    world.tell(Event::Looked(Looked::Seen));
    assert_eq!(world.book.state, State::Confirmed { version: v("1.1.0"), at: at(0) });
    assert_eq!(world.next(), Step::Rest(Rest::AsDirected));
    // Invariant I21: asked again, nothing changes.
    assert_eq!(world.next(), Step::Rest(Rest::AsDirected));
    assert_eq!(world.book.generation, 3);
}

#[test]
fn enabling_the_updater_with_no_target_set_changes_nothing() {
    let none = World::new("1.0.0", None, &["1.0.0", "1.1.0", "2.0.0"]);
    assert_eq!(none.next(), Step::Rest(Rest::NoDirective));
    let empty = World::new("1.0.0", Some(directive(1, vec![])), &["1.1.0"]);
    assert_eq!(empty.next(), Step::Rest(Rest::NotNamed));
    let mut broken = World::new("1.0.0", None, &[]);
    broken.offers = Err("expired".into());
    assert_eq!(broken.next(), Step::Rest(Rest::NoDirective));
}

#[test]
fn the_first_target_that_fits_a_host_is_the_one_for_it() {
    let check = |targets: Vec<Target>, want: Option<&str>| {
        let world = World::new("1.0.0", Some(directive(1, targets)), &[]);
        let found = target_for(world.directive.as_ref().unwrap(), &world.host()).map(|target| target.version.to_string());
        assert_eq!(found.as_deref(), want);
    };
    let of = |version: &str, narrow: &dyn Fn(&mut Target)| {
        let mut target = target(version);
        narrow(&mut target);
        target
    };
    check(vec![target("1.1.0"), target("1.2.0")], Some("1.1.0"));
    check(vec![of("1.1.0", &|target| target.hosts = [id(2)].into()), target("1.2.0")], Some("1.2.0"));
    check(vec![of("1.1.0", &|target| target.hosts = [id(1), id(2)].into())], Some("1.1.0"));
    check(vec![of("1.1.0", &|target| target.roles = [SystemRole::Proxy].into())], None);
    check(vec![of("1.1.0", &|target| target.roles = [SystemRole::Proxy, SystemRole::Node].into())], Some("1.1.0"));
    check(vec![of("1.1.0", &|target| target.wave = Some(Wave { salt: "a".into(), below: 0 }))], None);
    check(vec![of("1.1.0", &|target| target.wave = Some(Wave { salt: "a".into(), below: 10_000 }))], Some("1.1.0"));
    // A condition that a later release added: not for this host, rather than for all.
    check(vec![of("1.1.0", &|target| drop(target.extra.insert("labels".into(), "env=prod".into())))], None);
}

#[test]
fn a_host_with_an_auth_service_is_not_moved_by_a_target_for_hosts() {
    let mut only_nodes = target("1.1.0");
    only_nodes.roles = [SystemRole::Node].into();
    let mut world = World::new("1.0.0", Some(directive(1, vec![only_nodes])), &["1.1.0"]);
    world.roles = [SystemRole::Auth, SystemRole::Node].into();
    assert_eq!(world.next(), Step::Rest(Rest::NotNamed));
}

#[test]
fn a_wave_takes_its_share_and_each_upgrade_begins_with_others() {
    let taken = |salt: &str, below: u16| -> BTreeSet<u128> {
        let mut wave = target("1.1.0");
        wave.wave = Some(Wave { salt: salt.into(), below });
        let directive = directive(1, vec![wave]);
        let (cluster, roles) = (ClusterName::new("acme").unwrap(), BTreeSet::new());
        let host = |number| Host { id: id(number), cluster: &cluster, roles: &roles, edition: "", os: "", arch: "" };
        (0..4000).filter(|number| target_for(&directive, &host(*number)).is_some()).collect()
    };
    let (small, large, other) = (taken("u1", 500), taken("u1", 2000), taken("u2", 500));
    assert!((120..=280).contains(&small.len()), "{} of 4000 in a wave of 5 %", small.len());
    assert!(small.is_subset(&large), "a wave keeps those of the one before");
    assert!(small.intersection(&other).count() < small.len() / 2, "another salt, other hosts");
}

/// What `next` says when one thing is wrong.
fn refused(wrong: impl Fn(&mut World)) -> Refusal {
    let mut world = World::new("1.0.0", Some(directive(5, vec![target("1.1.0")])), &["1.0.0", "1.1.0"]);
    world.book.generation = 5;
    wrong(&mut world);
    world.refusal()
}

fn edit(world: &mut World, change: impl Fn(&mut Offer)) {
    world.offers.as_mut().unwrap().iter_mut().for_each(change);
}

#[test]
fn nothing_is_installed_that_vendor_and_cluster_do_not_both_allow() {
    let check = |want: &str, code: Code, wrong: &dyn Fn(&mut World)| {
        let refusal = refused(wrong);
        assert_eq!(refusal.to_string(), want);
        assert!(refusal.public().is(code), "{refusal}");
    };
    let cluster = |change: &'static dyn Fn(&mut Directive)| move |world: &mut World| change(world.directive.as_mut().unwrap());
    check("the directive is of format 2, which this release does not know", Code::UpdateDirective, &cluster(&|d| d.format = 2));
    let other = &|d: &mut Directive| d.cluster = ClusterName::new("other").unwrap();
    check("the directive is of another cluster, other", Code::UpdateDirective, &cluster(other));
    check("the directive has generation 4, and 5 was obeyed before", Code::UpdateDirective, &cluster(&|d| d.generation = 4));
    check("the directive expired at 2027-01-15T08:00:00Z", Code::UpdateDirective, &cluster(&|d| d.expires = at(0)));
    check("the directive names no archive of 1.1.0 for linux/amd64", Code::UpdateRefused, &|world| {
        world.directive.as_mut().unwrap().targets[0].artifacts = [("linux/arm64".to_owned(), digest(1))].into();
    });
    check("timestamp.json has expired", Code::UpdateUntrusted, &|world| world.offers = Err("timestamp.json has expired".into()));
    check("the vendor's metadata does not list 1.1.0", Code::UpdateRefused, &|world| world.offers = Ok(vec![offer("1.0.0")]));
    let unknown = format!("the vendor's metadata lists no archive of 1.1.0 with the digest that the directive names, {}", digest(1));
    check(&unknown, Code::UpdateRefused, &|world| {
        world.directive.as_mut().unwrap().targets[0].artifacts = [("linux/amd64".to_owned(), digest(1))].into();
    });
    check(
        "the archive lockgate-1.1.0-linux-amd64.tar.gz is of edition lockgate-fips, this host has lockgate",
        Code::UpdateRefused,
        &|world| edit(world, |offer| offer.edition = "lockgate-fips".into()),
    );
    check("the archive lockgate-1.1.0-linux-amd64.tar.gz is for linux/arm64, this host is linux/amd64", Code::UpdateRefused, &|world| {
        edit(world, |offer| offer.arch = "arm64".into());
    });
    check("1.1.0 cannot be installed over 1.0.0: the oldest release that may go to it is 1.0.5", Code::UpdateRefused, &|world| {
        edit(world, |offer| offer.minimum_source = v("1.0.5"));
    });
    check("1.1.0 cannot be installed over 1.0.0: it lost keys", Code::UpdateRefused, &|world| {
        edit(world, |offer| drop(offer.denied_sources.insert("1.0.0".into(), "it lost keys".into())));
    });
}

#[test]
fn g5_majors_are_taken_one_at_a_time_upwards_and_the_way_back_is_the_clusters_to_allow() {
    let check = |from: &str, to: &str, want: Option<&str>| {
        let mut world = World::new(from, Some(directive(1, vec![target(to)])), &[to]);
        edit(&mut world, |offer| offer.minimum_source = v("0.0.0"));
        match (world.next(), want) {
            (Step::Fetch(job), None) => assert_eq!(job.version, v(to)),
            (Step::Refuse(refusal), Some(want)) => assert_eq!(refusal.to_string(), want),
            (other, _) => panic!("{from} to {to}: {other:?}"),
        }
    };
    check("1.0.0", "2.3.0", None);
    check("1.0.0", "3.0.0", Some("3.0.0 cannot be installed over 1.0.0: majors are taken one at a time, and 2 is next"));
    check("2.3.0", "1.9.0", None);
    check("4.0.0", "1.9.0", None);
}

#[test]
fn a_release_whose_own_test_fails_is_marked_and_not_tried_again_until_the_cluster_says_so() {
    let mut world = World::new("1.0.0", Some(directive(3, vec![target("1.1.0")])), &["1.1.0", "1.2.0"]);
    let Step::Fetch(job) = world.next() else { panic!() };
    world.tell(Event::Tested(job, Verdict::Failed("it does not start".into())));
    assert!(matches!(&world.book.state, State::Reverted { why, .. } if why == "it does not start"));
    assert_eq!(world.next(), Step::Rest(Rest::Marked));
    // The same directive again, or the next wave's: still marked.
    world.directive = Some(directive(4, vec![target("1.1.0")]));
    assert_eq!(world.next(), Step::Rest(Rest::Marked));
    world.directive = Some(directive(5, vec![Target { retry: true, ..target("1.1.0") }]));
    assert!(matches!(world.next(), Step::Fetch(_)));
    world.directive = Some(directive(6, vec![target("1.2.0")]));
    assert!(matches!(world.next(), Step::Fetch(_)), "another release is another matter");
}

#[test]
fn a_test_that_could_not_be_made_is_made_again_later_and_marks_nothing() {
    let mut world = World::new("1.0.0", Some(directive(3, vec![target("1.1.0")])), &["1.1.0"]);
    let Step::Fetch(job) = world.next() else { panic!() };
    world.tell(Event::Fetched(job.clone()));
    world.tell(Event::Staged(job.clone()));
    let mut waits = Vec::new();
    for _ in 0..12 {
        assert!(matches!(world.next(), Step::Test(_)));
        world.tell(Event::Tested(job.clone(), Verdict::Unclear("no Proxy answers".into())));
        let Step::Wait { until } = world.next() else { panic!() };
        waits.push(until.since(at(world.now)).as_secs());
        world.now += waits.last().unwrap();
    }
    assert_eq!(waits[..4], [30, 60, 120, 240]);
    assert_eq!(waits.last(), Some(&3600));
    assert!(world.book.bad.is_empty());
}

#[test]
fn a_new_release_that_the_cluster_does_not_see_is_taken_back_and_marked() {
    let mut world = World::new("1.0.0", Some(directive(3, vec![target("1.1.0")])), &["1.1.0"]);
    let job = world.up_to_switch();
    let mut looks = 0;
    let (to, why) = loop {
        match world.next() {
            Step::Look(_) => world.tell(Event::Looked(Looked::Unseen)),
            Step::Revert { to, why, .. } => break (to, why),
            other => panic!("{other:?}"),
        }
        (world.now, looks) = (world.now + 20, looks + 1);
    };
    assert_eq!((to.version, looks), (v("1.0.0"), 16));
    assert_eq!(why, "the cluster could be reached for 5m and did not see this host with 1.1.0");
    world.installed = Installed { version: v("1.0.0"), archive: None };
    world.tell(Event::Reverted { job, why });
    assert_eq!(world.next(), Step::Rest(Rest::Marked));
    let report = world.book.report(None, at(world.now));
    assert_eq!((report.state.as_str(), report.version), ("reverted", Some(v("1.1.0"))));
    assert!(report.why.contains("did not see this host"));
}

#[test]
fn a_network_that_is_away_for_long_at_boot_never_marks_a_version_bad() {
    let mut world = World::new("1.0.0", Some(directive(3, vec![target("1.1.0")])), &["1.1.0"]);
    world.up_to_switch();
    for _ in 0..500 {
        world.now += 60;
        world.tell(Event::Looked(Looked::Unreachable));
        assert!(matches!(world.next(), Step::Look(_)));
    }
    // Eight hours later it comes, and the time before it does not count.
    for _ in 0..4 {
        world.now += 60;
        world.tell(Event::Looked(Looked::Unseen));
        assert!(matches!(world.next(), Step::Look(_)));
    }
    world.tell(Event::Looked(Looked::Seen));
    assert!(world.book.bad.is_empty());
    assert_eq!(world.next(), Step::Rest(Rest::AsDirected));
}

#[test]
fn a_host_that_slept_through_the_deadline_is_looked_at_before_it_is_judged() {
    let mut world = World::new("1.0.0", Some(directive(3, vec![target("1.1.0")])), &["1.1.0"]);
    world.up_to_switch();
    world.tell(Event::Looked(Looked::Unseen));
    world.now += 86_400;
    world.tell(Event::Looked(Looked::Unseen));
    assert!(matches!(world.next(), Step::Look(_)), "a day between two looks is not a day of failure");
}

#[test]
fn a_pinned_host_stays_but_what_was_begun_is_brought_to_its_end() {
    let mut world = World::new("1.0.0", Some(directive(3, vec![target("1.1.0")])), &["1.1.0"]);
    world.book.pinned = true;
    assert_eq!(world.next(), Step::Rest(Rest::Pinned));
    world.book.pinned = false;
    world.up_to_switch();
    world.book.pinned = true;
    assert!(matches!(world.next(), Step::Look(_)));
}

#[test]
fn another_target_in_between_begins_anew() {
    let mut world = World::new("1.0.0", Some(directive(3, vec![target("1.1.0")])), &["1.1.0", "1.2.0"]);
    let Step::Fetch(job) = world.next() else { panic!() };
    world.tell(Event::Fetched(job));
    assert!(matches!(world.next(), Step::Stage(_)));
    world.directive = Some(directive(4, vec![target("1.2.0")]));
    assert!(matches!(world.next(), Step::Fetch(job) if job.version == v("1.2.0")));
}

#[test]
fn another_build_of_the_version_that_runs_is_another_release() {
    let mut world = World::new("1.1.0", Some(directive(3, vec![target("1.1.0")])), &["1.1.0"]);
    assert_eq!(world.next(), Step::Rest(Rest::AsDirected), "put there by a package: nobody knows its archive");
    world.installed.archive = Some(digest(1));
    assert!(matches!(world.next(), Step::Fetch(_)));
}

#[test]
fn a_replayed_directive_is_refused_even_if_the_newer_one_asked_for_nothing() {
    let mut world = World::new("1.0.0", Some(directive(8, vec![])), &["1.1.0"]);
    assert_eq!(world.next(), Step::Rest(Rest::NotNamed));
    let told = world.directive.clone().unwrap();
    world.book = std::mem::take(&mut world.book).heard(&told, &World::new("1.0.0", None, &[]).host(), at(0));
    world.directive = Some(directive(7, vec![target("1.1.0")]));
    assert_eq!(world.refusal(), Refusal::Older { generation: 7, seen: 8 });
    // One that does not count leaves no trace.
    let foreign = Directive { cluster: ClusterName::new("other").unwrap(), ..directive(99, vec![]) };
    let before = world.book.clone();
    assert_eq!(before.clone().heard(&foreign, &world.host(), at(0)), before);
}

#[test]
fn a_book_reads_back_what_it_wrote_and_keeps_what_a_later_release_added() {
    let mut world = World::new("1.0.0", Some(directive(3, vec![target("1.1.0")])), &["1.1.0"]);
    let job = world.up_to_switch();
    world.tell(Event::Reverted { job, why: "no".into() });
    world.book.extra.insert("later".into(), 7.into());
    let json = serde_json::to_string(&world.book).unwrap();
    assert_eq!(serde_json::from_str::<Book>(&json).unwrap(), world.book);
    assert_eq!(serde_json::from_str::<Book>("{}").unwrap(), Book::default());
}

/// What may happen to a host between two looks at it.
#[derive(Clone, Debug)]
enum Happening {
    /// The cluster says something: a version, a generation that may be old.
    Directs(usize, u64),
    SaysNothing,
    Vouches(bool),
    /// The step succeeds, fails by itself, or the network is away.
    Works,
    Trouble,
    TestFails,
    Unreachable,
    Unseen,
    Passes(u64),
}

fn happening() -> impl Strategy<Value = Happening> {
    prop_oneof![
        1 => (0usize..4, 0u64..6).prop_map(|(version, generation)| Happening::Directs(version, generation)),
        1 => Just(Happening::SaysNothing),
        1 => any::<bool>().prop_map(Happening::Vouches),
        4 => Just(Happening::Works),
        1 => Just(Happening::Trouble),
        1 => Just(Happening::TestFails),
        2 => Just(Happening::Unreachable),
        2 => Just(Happening::Unseen),
        2 => (1u64..4000).prop_map(Happening::Passes),
    ]
}

proptest! {
    #[test]
    fn invariants_i10_i18_and_i21_hold_whatever_happens(story in prop::collection::vec(happening(), 1..80)) {
        let versions = ["1.0.0", "1.1.0", "1.2.0", "2.0.0"];
        let mut world = World::new("1.0.0", None, &versions);
        let (mut blamed, mut reached) = (BTreeSet::new(), Duration::ZERO);
        for event in story {
            let (generation, before) = (world.book.generation, world.installed.clone());
            let step = world.next();
            prop_assert_eq!(&step, &world.next(), "equal inputs, equal steps");
            match (event, step) {
                (Happening::Directs(version, generation), _) => world.directive = Some(directive(generation, vec![target(versions[version])])),
                (Happening::SaysNothing, _) => world.directive = None,
                (Happening::Vouches(true), _) => world.offers = Ok(versions.map(offer).to_vec()),
                (Happening::Vouches(false), _) => world.offers = Err("nothing is believed".into()),
                (Happening::Passes(seconds), _) => world.now += seconds,
                (Happening::Works, Step::Fetch(job)) => {
                    // I18: in the directive of now, and in what the vendor vouches for now.
                    let directive = world.directive.as_ref().unwrap();
                    prop_assert!(directive.targets[0].artifacts.values().any(|archive| *archive == job.archive));
                    prop_assert!(world.offers.as_ref().unwrap().iter().any(|offer| offer.archive == job.archive));
                    prop_assert!(directive.generation >= world.book.generation);
                    world.tell(Event::Fetched(job));
                }
                (Happening::Works, Step::Stage(job)) => world.tell(Event::Staged(job)),
                (Happening::Works, Step::Test(job)) => world.tell(Event::Tested(job, Verdict::Passed)),
                (Happening::Works, Step::Switch(job)) => {
                    world.installed = Installed { version: job.version.clone(), archive: Some(job.archive) };
                    world.tell(Event::Switched { job, from: before.clone(), boot: "b".into() });
                    reached = Duration::ZERO;
                }
                (Happening::Works, Step::Look(_)) => world.tell(Event::Looked(Looked::Seen)),
                (_, Step::Revert { job, to, why }) => {
                    prop_assert!(reached >= CONFIRM, "taken back after {reached:?}");
                    blamed.insert(job.archive);
                    world.installed = to;
                    world.tell(Event::Reverted { job, why });
                }
                (Happening::TestFails, Step::Test(job)) => {
                    blamed.insert(job.archive);
                    world.tell(Event::Tested(job, Verdict::Failed("no".into())));
                }
                (Happening::Trouble, Step::Fetch(job) | Step::Stage(job) | Step::Test(job)) => world.tell(Event::Trouble(job)),
                (Happening::Unreachable, Step::Look(_)) => world.tell(Event::Looked(Looked::Unreachable)),
                (Happening::Unseen, Step::Look(_)) => {
                    world.now += 30;
                    reached += Duration::from_secs(4030);
                    world.tell(Event::Looked(Looked::Unseen));
                }
                _ => {}
            }
            prop_assert!(world.book.generation >= generation, "I10: generations never go back");
            prop_assert!(world.book.bad.keys().all(|archive| blamed.contains(archive)), "marked without a fault of its own");
            if world.directive.is_none() && !matches!(world.book.state, State::Switched { .. } | State::Reverted { .. }) {
                prop_assert_eq!(&world.installed, &before, "without a directive nothing changes");
            }
        }
    }

    #[test]
    fn whatever_was_begun_comes_to_its_end_once_things_work(story in prop::collection::vec(0u8..3, 0..20)) {
        let mut world = World::new("1.0.0", Some(directive(2, vec![target("1.1.0")])), &["1.1.0"]);
        for event in story {
            match (event, world.next()) {
                (0, Step::Fetch(job) | Step::Stage(job) | Step::Test(job)) => world.tell(Event::Trouble(job)),
                (1, Step::Fetch(job)) => world.tell(Event::Fetched(job)),
                (1, Step::Stage(job)) => world.tell(Event::Staged(job)),
                _ => world.now += 4000,
            }
        }
        world.now += 4000;
        world.up_to_switch();
        world.tell(Event::Looked(Looked::Seen));
        prop_assert_eq!(world.next(), Step::Rest(Rest::AsDirected));
    }
}
