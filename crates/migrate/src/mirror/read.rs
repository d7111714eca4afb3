//! Reads through a mirror: from the side that is the truth, confirmed by the journal afterwards.
//!
//! After the contraction a reshaped row lies in the shadow until the sweep puts it in its place. There the shadow is read first
//! and the place second: a row that was swept in between is found in its place, and in its place is then the new form.

use super::view::{Place, Seen, Shown, View};
use super::{Mirror, restless};
use std::collections::BTreeMap;
use store::{Item, Key, MAX_PAGE, Page, StoreError};

/// How often a read follows a journal that moves.
const TRIES: usize = 16;

/// A part of a range in which one rule holds.
struct Piece<'v> {
    to: Key,
    place: Place<'v>,
}

impl Mirror {
    pub(super) async fn look_up(&self, key: &Key) -> Result<Option<Shown>, StoreError> {
        let mut view = self.view().await?;
        for _ in 0..TRIES {
            let seen = match view.place(key) {
                Place::Plain | Place::Source(_) | Place::Derived => {
                    return Ok(self.inner.get(key).await?.map(|item| Shown { item, raw: false }));
                }
                Place::Hidden => return Ok(None),
                Place::Row(seen) => seen,
            };
            let shown = self.look_up_row(seen, key).await?;
            if seen.holds(self.inner.as_ref()).await? {
                return Ok(shown);
            }
            view = self.refresh().await?;
        }
        Err(restless(key))
    }

    async fn look_up_row(&self, seen: &Seen, key: &Key) -> Result<Option<Shown>, StoreError> {
        let at = |dir: &Key| key.rebased(&seen.dirs.new, dir).unwrap_or_else(|| key.clone());
        if let Some(dir) = seen.truth_dir() {
            return Ok(self.inner.get(&at(dir)).await?.map(|item| seen.show(item, dir)));
        }
        if let Some(item) = self.inner.get(&at(&seen.dirs.home)).await? {
            return Ok(Some(seen.show(item, &seen.dirs.home)));
        }
        Ok(self.inner.get(key).await?.map(|item| seen.show(item, &seen.dirs.new)))
    }

    pub(super) async fn list(&self, from: &Key, to: &Key, limit: usize) -> Result<Page, StoreError> {
        let limit = limit.clamp(1, MAX_PAGE);
        let mut view = self.view().await?;
        for _ in 0..TRIES {
            match self.list_with(&view, from, to, limit).await? {
                Some(page) => return Ok(page),
                None => view = self.refresh().await?,
            }
        }
        Err(restless(from))
    }

    /// The first rows of a range; `None` when the view was stale.
    async fn list_with(&self, view: &View, from: &Key, to: &Key, limit: usize) -> Result<Option<Page>, StoreError> {
        let mut from = from.clone();
        let mut revision = None;
        loop {
            let piece = first_piece(view, &from, to);
            let page = match piece.place {
                Place::Hidden => Page { items: Vec::new(), next: None, revision: self.inner.revision().await? },
                Place::Row(seen) => {
                    let page = self.list_rows(seen, &from, &piece.to, limit).await?;
                    if !seen.holds(self.inner.as_ref()).await? {
                        return Ok(None);
                    }
                    page
                }
                Place::Plain | Place::Source(_) | Place::Derived => self.inner.range(&from, &piece.to, limit).await?,
            };
            let revision = *revision.get_or_insert(page.revision);
            let next = page.next.or_else(|| (piece.to < *to).then(|| piece.to.clone()));
            match next {
                Some(next) if page.items.is_empty() => from = next,
                next => return Ok(Some(Page { items: page.items, next, revision })),
            }
        }
    }

    async fn list_rows(&self, seen: &Seen, from: &Key, to: &Key, limit: usize) -> Result<Page, StoreError> {
        if let Some(dir) = seen.truth_dir() {
            return self.list_side(seen, dir, from, to, limit).await;
        }
        let shadow = self.list_side(seen, &seen.dirs.home, from, to, limit).await?;
        let to = shadow.next.as_ref().unwrap_or(to);
        let place = self.list_side(seen, &seen.dirs.new, from, to, limit).await?;
        // What lies behind the end of the second page is left for the next call.
        let end = place.next.as_ref();
        let before = |item: &Item| end.is_none_or(|end| item.key < *end);
        let mut rows: BTreeMap<Key, Item> = place.items.into_iter().map(|item| (item.key.clone(), item)).collect();
        rows.extend(shadow.items.into_iter().filter(before).map(|item| (item.key.clone(), item)));
        let mut items: Vec<Item> = rows.into_values().collect();
        let mut next = place.next.or(shadow.next);
        if let Some(item) = items.get(limit) {
            next = Some(item.key.clone());
            items.truncate(limit);
        }
        Ok(Page { items, next, revision: shadow.revision })
    }

    /// A page of one side, under the keys business code knows.
    async fn list_side(&self, seen: &Seen, dir: &Key, from: &Key, to: &Key, limit: usize) -> Result<Page, StoreError> {
        let page = self.inner.range(&bound(from, &seen.dirs.new, dir), &bound(to, &seen.dirs.new, dir), limit).await?;
        let items = page.items.into_iter().map(|item| seen.show(item, dir).item).collect();
        let next = page.next.map(|next| bound(&next, dir, &seen.dirs.new));
        Ok(Page { items, next, revision: page.revision })
    }
}

/// A bound in one directory as one in another; a bound behind all its rows stays that.
pub(super) fn bound(key: &Key, from: &Key, to: &Key) -> Key {
    key.rebased(from, to).unwrap_or_else(|| if key < from { to.clone() } else { to.prefix_end() })
}

/// The beginning of a range up to where another rule holds.
fn first_piece<'v>(view: &'v View, from: &Key, to: &Key) -> Piece<'v> {
    for (start, end, place) in view.covered() {
        if end <= *from || *start >= *to {
            continue;
        }
        if start > from {
            return Piece { to: start.clone(), place: Place::Plain };
        }
        return Piece { to: end.min(to.clone()), place };
    }
    Piece { to: to.clone(), place: Place::Plain }
}
