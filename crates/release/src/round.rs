//! One round of a host's updater: look at what is directed and vouched for, do what `upgrade::updater` says, write it down.
//!
//! The book is on the disk before the next step begins, so a round that is killed is gone on with by the next, of whichever release.
//! What touches the network, the service or other programs is a [`World`]; files are touched here. Every refusal is one line, in the
//! report that the host's heartbeat carries to the cluster, and leaves the releases on the disk and the link as they were.

use crate::{
    source::Source,
    verify::{Trust, Vouched, verify},
    versions::{Versions, replace},
};
use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use types::{Code, Public, Time, Version, update::Directive};
use upgrade::updater::{self, Book, Case, Event, Host, Installed, Job, Looked, Patience, Rest, State, Step, Verdict, next};

/// Between two looks at whether the cluster sees the new release.
const LOOK: Duration = Duration::from_secs(3);
/// Steps of one round: more than any way has.
const MAX_STEPS: usize = 10_000;
const BOOK: &str = "book.json";
/// What the service's heartbeat tells the cluster (`types::update::UpdateReport`).
pub const REPORT: &str = "report.json";

/// This host's process, as the cluster shows it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Seen {
    pub version: Version,
    pub boot_id: String,
}

/// What a round needs besides files.
#[tough::async_trait]
pub trait World: Send + Sync {
    fn now(&self) -> Time;
    async fn pause(&self, length: Duration);
    /// The directive in force, its signature checked; none when the cluster directs nothing.
    async fn directive(&self) -> Result<Option<Directive>, Public>;
    fn source(&self) -> Arc<dyn Source>;
    /// Gets the archive, by its digest, into that folder.
    async fn fetch(&self, job: &Job, into: &Path) -> Result<PathBuf, Public>;
    /// Lets a program that was staged say whether it could run here.
    async fn test(&self, program: &Path, version: &Version) -> Verdict;
    /// Makes the service run what the link names.
    async fn restart(&self) -> Result<(), Public>;
    /// This host as the cluster shows it, if it does; an error when the cluster cannot be reached.
    async fn seen(&self) -> Result<Option<Seen>, Public>;
}

/// Where a host keeps what its updater needs, and what it is.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    pub host: Host<'a>,
    pub versions: &'a Versions,
    /// The book, what was believed, what is being fetched: `<data_dir>/update`.
    pub state: &'a Path,
    /// The vendor's root file.
    pub root: &'a Path,
    /// The release that is installed while there is no link, and its program.
    pub own: (&'a Version, &'a Path),
    pub patience: Patience,
}

/// How a round ended.
#[derive(Clone, PartialEq, Debug)]
pub enum Outcome {
    /// There was nothing to do.
    Rest(Rest),
    /// The cluster has seen the new release.
    Done(Version),
    /// It does not work here; what ran before runs.
    Reverted(Version, Public),
    /// Somebody wants what is not allowed, or says what is not genuine. Nothing was changed.
    Refused(Public),
    /// Something is missing that will come by itself.
    Waits(Public),
}

/// Reads what a host's updater remembers.
pub fn book(state: &Path) -> Result<Book, Public> {
    let path = state.join(BOOK);
    match fs::read(&path) {
        Ok(bytes) => serde_json::from_slice(&bytes).map_err(|error| unreadable(&path, &error.to_string())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Book::default()),
        Err(error) => Err(unreadable(&path, &error.to_string())),
    }
}

/// Writes it, and the report beside it. `refused`: what stands in the way now.
pub fn keep(state: &Path, book: &Book, refused: Option<&str>, now: Time) -> Result<(), Public> {
    let write = |name: &str, bytes: serde_json::Result<Vec<u8>>| {
        let path = state.join(name);
        let bytes = bytes.map_err(|error| unreadable(&path, &error.to_string()))?;
        fs::create_dir_all(state).and_then(|()| replace(&path, &bytes)).map_err(|error| unreadable(&path, &error.to_string()))
    };
    write(BOOK, serde_json::to_vec_pretty(book))?;
    let report = book.report(refused, now);
    let before: Option<types::update::UpdateReport> =
        fs::read(state.join(REPORT)).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
    // Only the time differs: nothing new for anybody.
    let same = |before: &types::update::UpdateReport| *before == types::update::UpdateReport { at: before.at, ..report.clone() };
    if before.as_ref().is_some_and(same) { Ok(()) } else { write(REPORT, serde_json::to_vec(&report)) }
}

fn unreadable(path: &Path, why: &str) -> Public {
    Public::new(Code::UpdateBroken, format!("{}: {why}", path.display()))
}

struct Round<'a> {
    world: &'a dyn World,
    place: &'a Place<'a>,
    book: Book,
    directive: Option<Directive>,
    /// Asked for once, and only when something is to be installed.
    vouched: Option<Result<Vouched, Public>>,
}

/// Does what there is to do. An error is this host's own: its disk, its book, another updater.
pub async fn round(world: &dyn World, place: &Place<'_>) -> Result<Outcome, Public> {
    let _held = place.versions.lock().map_err(|error| error.public())?;
    let mut round = Round { world, place, book: book(place.state)?, directive: None, vouched: None };
    let outcome = round.run().await?;
    let refused = match &outcome {
        Outcome::Refused(public) => Some(public.message.as_str()),
        Outcome::Rest(_) | Outcome::Done(_) | Outcome::Reverted(..) | Outcome::Waits(_) => None,
    };
    keep(place.state, &round.book, refused, world.now())?;
    Ok(outcome)
}

impl Round<'_> {
    async fn run(&mut self) -> Result<Outcome, Public> {
        // What was begun is judged first: for that nobody has to direct anything.
        let installed = self.installed();
        if !matches!(&self.book.state, State::Switched { job, .. } if job.version == installed.version) {
            match self.world.directive().await {
                Ok(directive) => self.directive = directive,
                Err(error) if error.is(Code::UpdateDirective) => return Ok(Outcome::Refused(error)),
                Err(error) => return Ok(Outcome::Waits(error)),
            }
            if let Some(directive) = &self.directive {
                self.book = std::mem::take(&mut self.book).heard(directive, &self.place.host, self.world.now());
            }
        }
        let begun = self.world.now();
        for _ in 0..MAX_STEPS {
            match self.step().await? {
                Step::Rest(Rest::Marked) => return Ok(self.marked()),
                Step::Rest(rest) => return Ok(Outcome::Rest(rest)),
                Step::Refuse(refusal) => return Ok(self.refused(refusal)),
                Step::Wait { until } => {
                    let text = format!("the last try did not succeed; the next is at {}", until.whole_seconds());
                    return Ok(Outcome::Waits(Public::new(Code::Unavailable, text)));
                }
                Step::Fetch(job) => {
                    if let Some(outcome) = self.fetch(job).await? {
                        return Ok(outcome);
                    }
                }
                Step::Stage(job) => {
                    if let Some(outcome) = self.stage(job)? {
                        return Ok(outcome);
                    }
                }
                Step::Test(job) => {
                    let verdict = self.world.test(&self.place.versions.staged(&job), &job.version).await;
                    let (version, told) = (job.version.clone(), verdict.clone());
                    self.tell(Event::Tested(job, verdict))?;
                    if let Verdict::Failed(why) = told {
                        return Ok(Outcome::Reverted(version, failed(why)));
                    }
                }
                Step::Switch(job) => self.switch(job).await?,
                Step::Look(job) => {
                    if let Some(outcome) = self.look(&job, begun).await? {
                        return Ok(outcome);
                    }
                }
                Step::Revert { job, to, why } => return self.revert(job, &to, why).await,
            }
        }
        Err(Public::new(Code::Internal, "an update does not come to an end"))
    }

    fn installed(&self) -> Installed {
        self.place.versions.installed().unwrap_or_else(|| Installed { version: self.place.own.0.clone(), archive: None })
    }

    /// What is to be done now. The vendor is asked only once something is to be installed.
    async fn step(&mut self) -> Result<Step, Public> {
        let (installed, now) = (self.installed(), self.world.now());
        let unknown = Err("the metadata was not asked for");
        let step = self.decide(&installed, unknown, now);
        let asks = matches!(&step, Step::Refuse(updater::Refusal::Metadata(_)));
        if !asks {
            return Ok(step);
        }
        if self.vouched.is_none() {
            self.vouched = Some(self.vouch().await);
        }
        match &self.vouched {
            Some(Ok(vouched)) => Ok(self.decide(&installed, Ok(&vouched.offers), now)),
            Some(Err(error)) => Ok(self.decide(&installed, Err(&error.message), now)),
            None => Ok(step),
        }
    }

    fn decide(&self, installed: &Installed, offers: Result<&[updater::Offer], &str>, now: Time) -> Step {
        next(&Case {
            host: self.place.host,
            installed,
            book: &self.book,
            directive: self.directive.as_ref(),
            offers,
            patience: self.place.patience,
            now,
        })
    }

    async fn vouch(&self) -> Result<Vouched, Public> {
        let trust = Trust::open(self.place.root, &self.place.state.join("trust")).map_err(|error| error.public())?;
        verify(&trust, self.world.source()).await.map_err(|error| error.public())
    }

    /// A refusal; metadata that could not be fetched is not one.
    fn refused(&self, refusal: updater::Refusal) -> Outcome {
        match (&self.vouched, &refusal) {
            (Some(Err(error)), updater::Refusal::Metadata(_)) if error.is(Code::UpdateUntrusted) || error.is(Code::Config) => {
                Outcome::Refused(error.clone())
            }
            (Some(Err(error)), updater::Refusal::Metadata(_)) => Outcome::Waits(error.clone()),
            _ => Outcome::Refused(refusal.public()),
        }
    }

    fn marked(&self) -> Outcome {
        match &self.book.state {
            State::Reverted { version, why, .. } => Outcome::Reverted(version.clone(), failed(why.clone())),
            _ => Outcome::Rest(Rest::Marked),
        }
    }

    fn tell(&mut self, event: Event) -> Result<(), Public> {
        let now = self.world.now();
        self.book = std::mem::take(&mut self.book).after(event, &self.place.patience, now);
        keep(self.place.state, &self.book, None, now)
    }

    fn downloads(&self) -> PathBuf {
        self.place.state.join("download")
    }

    async fn fetch(&mut self, job: Job) -> Result<Option<Outcome>, Public> {
        let into = self.downloads();
        fs::create_dir_all(&into).map_err(|error| unreadable(&into, &error.to_string()))?;
        if !self.place.versions.has(&job)
            && let Err(error) = self.world.fetch(&job, &into).await
        {
            return self.trouble(job, error).map(Some);
        }
        self.tell(Event::Fetched(job)).map(|()| None)
    }

    fn stage(&mut self, job: Job) -> Result<Option<Outcome>, Public> {
        if self.place.versions.installed().is_none() {
            self.place.versions.adopt(self.place.own.0, self.place.own.1).map_err(|error| error.public())?;
        }
        let archive = self.downloads().join(&job.file);
        let staged = self.place.versions.stage(&job, &archive);
        // Whatever came of it, the file is not needed: a good one is unpacked, a bad one is fetched again.
        let _ = fs::remove_file(&archive);
        match staged {
            Ok(()) => self.tell(Event::Staged(job)).map(|()| None),
            Err(error) => self.trouble(job, error.public()).map(Some),
        }
    }

    /// The round ends, and the book says when to try again. Bytes that are not what was signed are more than trouble.
    fn trouble(&mut self, job: Job, error: Public) -> Result<Outcome, Public> {
        self.tell(Event::Trouble(job))?;
        let genuine = !error.is(Code::MirrorBroken) && !error.is(Code::UpdateBroken);
        Ok(if genuine { Outcome::Waits(error) } else { Outcome::Refused(error) })
    }

    async fn switch(&mut self, job: Job) -> Result<(), Public> {
        let from = self.installed();
        let boot = self.world.seen().await.ok().flatten().map(|seen| seen.boot_id).unwrap_or_default();
        let to = Installed { version: job.version.clone(), archive: Some(job.archive) };
        // In the book first: a link that moved without a word would never be judged.
        self.tell(Event::Switched { job, from, boot })?;
        self.place.versions.switch(&to).map_err(|error| error.public())?;
        self.restarted().await
    }

    /// A service that did not come up while the cluster is there has been judged.
    async fn restarted(&mut self) -> Result<(), Public> {
        let Err(error) = self.world.restart().await else { return Ok(()) };
        if self.world.seen().await.is_err() {
            return Ok(());
        }
        if let State::Switched { unseen, .. } = &mut self.book.state {
            *unseen = self.place.patience.confirm;
            self.book.extra.insert(RESTART.into(), error.message.into());
        }
        Ok(())
    }

    /// One look; the round's end when it decided something, or has taken long enough.
    async fn look(&mut self, job: &Job, begun: Time) -> Result<Option<Outcome>, Public> {
        let State::Switched { boot, from, .. } = self.book.state.clone() else { return Ok(None) };
        let (looked, why) = match self.world.seen().await {
            Ok(Some(seen)) if seen.version == job.version && seen.boot_id != boot => (Looked::Seen, None),
            Ok(_) => (Looked::Unseen, Some(Public::new(Code::Unavailable, "the cluster does not see the new release yet"))),
            Err(error) => (Looked::Unreachable, Some(error)),
        };
        self.tell(Event::Looked(looked))?;
        let Some(why) = why else {
            self.place.versions.prune(&[from]);
            return Ok(Some(Outcome::Done(job.version.clone())));
        };
        let spent = self.world.now().since(begun);
        if spent > self.place.patience.confirm.saturating_mul(2) {
            return Ok(Some(Outcome::Waits(why)));
        }
        self.world.pause(LOOK.min(self.place.patience.confirm / 8)).await;
        Ok(None)
    }

    async fn revert(&mut self, job: Job, to: &Installed, why: String) -> Result<Outcome, Public> {
        let told = self.book.extra.remove(RESTART).and_then(|told| told.as_str().map(str::to_owned));
        let why = told.map_or(why, |told| format!("the service did not come up with it: {told}"));
        self.place.versions.switch(to).map_err(|error| error.public())?;
        let restarted = self.world.restart().await;
        let version = job.version.clone();
        self.tell(Event::Reverted { job, why: why.clone() })?;
        restarted.map(|()| Outcome::Reverted(version, failed(why)))
    }
}

/// In the book's `extra`: what the restart of a new release said.
const RESTART: &str = "restart";

fn failed(why: String) -> Public {
    Public::new(Code::UpdateFailed, why).hint("the release before runs; tctl update target --retry tries the new one again")
}
