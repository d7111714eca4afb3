//! `tctl get|create|edit|rm`: documents of any kind, as YAML that can be fed back.
//!
//! Kinds of a newer release pass through as they are. Updates are conditional on the revision that was read: a change made
//! meanwhile by somebody else is a conflict, never lost.

use super::{Global, connect};
use crate::{
    connection::Connection,
    exit::{Could as _, Failure, Outcome, io, usage},
    output::{Format, Table, show, show_value, write_out},
};
use std::{io::Read as _, path::Path, process::ExitCode};
use types::{
    Code, Document, Labels, Public,
    document::MAX_DOCUMENT,
    kind::{KINDS, canonical_kind},
};

/// `tctl get`
pub(crate) fn get(global: &Global, resources: &str, format: Option<Format>, verbose: bool) -> Outcome {
    let connection = connect::open(global)?;
    let mut documents = Vec::new();
    for wanted in expand(resources) {
        let found = fetch(&connection, &wanted).and_then(|found| if found.is_empty() { known(&wanted).map(|()| found) } else { Ok(found) });
        documents.extend(found.could(format!("get {wanted}"))?);
    }
    // One whole document is for feeding back; lists are for reading.
    match format.unwrap_or(Format::Yaml) {
        Format::Yaml => {
            let mut text = String::new();
            for document in &documents {
                let yaml = serde_saphyr::to_string(document)
                    .map_err(|error| Public::new(Code::Internal, error.to_string()))
                    .could("print the documents")?;
                text.push_str(&format!("---\n{}\n", yaml.trim_end()));
            }
            write_out(&text)
        }
        Format::Json => show_value(Format::Json, &documents),
        Format::Text => {
            let mut table =
                Table::new(if verbose { &["Kind", "Name", "Revision", "Expires", "Labels"] } else { &["Kind", "Name", "Labels"] });
            for document in &documents {
                let mut cells = vec![document.kind.clone(), document.metadata.name.to_string()];
                if verbose {
                    cells.push(document.metadata.revision.as_ref().map_or_else(String::new, |revision| revision.to_string()));
                    cells.push(document.metadata.expires.map_or_else(String::new, |at| at.whole_seconds().to_string()));
                }
                cells.push(types::label::show_labels(&document.metadata.labels));
                table.row(cells);
            }
            show(Format::Text, &table, "No documents.", &())
        }
    }
    .could("print the documents")?;
    Ok(ExitCode::SUCCESS)
}

fn expand(resources: &str) -> Vec<String> {
    if resources == "all" {
        return KINDS.iter().map(|(kind, _)| (*kind).to_owned()).collect();
    }
    resources.split(',').map(str::trim).filter(|one| !one.is_empty()).map(str::to_owned).collect()
}

/// `kind`, `kind/name`, or the name of a singleton's kind.
fn fetch(connection: &Connection, wanted: &str) -> Result<Vec<Document>, Public> {
    let (kind, name) = wanted.split_once('/').map_or((wanted, None), |(kind, name)| (kind, Some(name)));
    let kind = canonical_kind(kind);
    match name {
        Some(name) => connection.run(connection.api().get_raw(&kind, name)).map(|document| vec![document]),
        None => connection.run(connection.api().list_raw(&kind, &Labels::new())).map(|listed| listed.items),
    }
}

/// A kind that nobody knows is most often a slip of the pen; one of a newer release has documents.
fn known(wanted: &str) -> Result<(), Public> {
    let kind = canonical_kind(wanted);
    if KINDS.iter().any(|(known, _)| *known == kind) {
        return Ok(());
    }
    let kinds = KINDS.iter().map(|(kind, _)| *kind).collect::<Vec<_>>().join(", ");
    Err(Public::new(Code::NotFound, format!("there are no documents of kind \"{}\"", kind.escape_debug()))
        .hint(format!("kinds are {kinds}, and all")))
}

/// `tctl create`
pub(crate) fn create(global: &Global, file: Option<&Path>, force: bool) -> Outcome {
    let (text, shown) = read(file)?;
    let documents =
        parse_many(&text).map_err(|fault| Failure::new("read the documents", Public::new(Code::Malformed, format!("{shown}{fault}"))))?;
    if documents.is_empty() {
        return Err(Failure::new("read the documents", usage(format!("{shown}: there is no document in it"))));
    }
    let connection = connect::open(global)?;
    for document in documents {
        let reference = document.reference();
        let word = connection.run(write(connection.api(), document, force)).could(format!("create {reference}"))?;
        write_out(&format!("{reference} has been {word}\n")).could("print")?;
    }
    Ok(ExitCode::SUCCESS)
}

async fn write(api: &client::api::Api, mut document: Document, force: bool) -> Result<&'static str, Public> {
    let revision = document.metadata.revision.take();
    match api.create_raw(&document).await {
        Ok(_) => Ok("created"),
        Err(error) if error.is(Code::AlreadyExists) && force => {
            // A revision in the file is the one its author read; without one, replace what is there now.
            let revision = match revision {
                Some(revision) => revision,
                None => api.get_raw(&document.kind, document.metadata.name.as_str()).await?.metadata.revision.ok_or(error)?,
            };
            document.metadata.revision = Some(revision);
            api.update_raw(&document).await.map(|_| "updated")
        }
        Err(error) if error.is(Code::AlreadyExists) => Err(error.hint("replace it with --force (-f)")),
        Err(error) => Err(error),
    }
}

fn read(file: Option<&Path>) -> Result<(String, String), Failure> {
    let mut text = String::new();
    let limit = (MAX_DOCUMENT * 16) as u64;
    match file.filter(|path| *path != Path::new("-")) {
        None => {
            std::io::stdin().take(limit).read_to_string(&mut text).could("read standard input").map(|_| (text, "standard input".to_owned()))
        }
        Some(path) => {
            let file = std::fs::File::open(path).could(format!("open {}", path.display()))?;
            file.take(limit).read_to_string(&mut text).could(format!("read {}", path.display()))?;
            Ok((text, path.display().to_string()))
        }
    }
}

/// Documents of a multi-document YAML text (JSON is YAML); the fault is `:line:column: what`.
pub(crate) fn parse_many(text: &str) -> Result<Vec<Document>, String> {
    let documents = serde_saphyr::from_multiple::<Document>(text).map_err(|error| {
        let what = error.to_string();
        let what = what.lines().find(|line| !line.trim().is_empty()).unwrap_or("cannot be read").trim();
        // The library says the place again before the fault.
        let what = match error.location() {
            Some(at) => what.strip_prefix(&format!("error: line {} column {}: ", at.line(), at.column())).unwrap_or(what),
            None => what,
        };
        match error.location() {
            Some(at) => format!(":{}:{}: {what}", at.line(), at.column()),
            None => format!(": {what}"),
        }
    })?;
    Ok(documents.into_iter().map(|document| Document { kind: canonical_kind(&document.kind), ..document }).collect())
}

/// `tctl edit`
pub(crate) fn edit(global: &Global, resource: &str) -> Outcome {
    let connection = connect::open(global)?;
    let documents = fetch(&connection, resource).could(format!("get {resource}"))?;
    let [before] = documents.as_slice() else {
        return Err(Failure::new("edit", usage(format!("\"{resource}\" names {} documents; edit one: kind/name", documents.len()))));
    };
    let yaml =
        serde_saphyr::to_string(before).map_err(|error| Public::new(Code::Internal, error.to_string())).could("prepare the document")?;
    let edited = Edited::by_user(&yaml).could("edit the document")?;
    let text = edited.read().could("edit the document")?;
    if text.trim() == yaml.trim() {
        write_out("Nothing was changed.\n").could("print")?;
        return Ok(ExitCode::SUCCESS);
    }
    let updated = replacement(&text, before).and_then(|after| connection.run(connection.api().update_raw(&after)));
    updated.map_err(|error| edited.keep(error)).could(format!("update {}", before.reference()))?;
    write_out(&format!("{} has been updated\n", before.reference())).could("print")?;
    Ok(ExitCode::SUCCESS)
}

/// The edited document, on the revision that was read.
fn replacement(text: &str, before: &Document) -> Result<Document, Public> {
    let after = parse_many(text).map_err(|fault| Public::new(Code::Malformed, format!("the text{fault}")))?;
    let [after] = after.as_slice() else { return Err(usage("the text holds not exactly one document")) };
    if after.kind != before.kind || after.metadata.name != before.metadata.name {
        return Err(usage("kind and name cannot change; create a new document with tctl create"));
    }
    let mut after = after.clone();
    after.metadata.revision.clone_from(&before.metadata.revision);
    Ok(after)
}

/// A private file that the user has edited; goes away unless it is kept.
struct Edited(std::path::PathBuf);

impl Edited {
    /// Lets the user edit: `$VISUAL`, `$EDITOR`, or vi.
    fn by_user(text: &str) -> Result<Self, Public> {
        use std::{io::Write as _, os::unix::fs::OpenOptionsExt as _};
        let edited = Self(std::env::temp_dir().join(format!("lockgate-edit-{}.yaml", uuid::Uuid::new_v4())));
        let file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&edited.0);
        file.and_then(|mut file| file.write_all(text.as_bytes())).map_err(|error| io(&error))?;
        let editor = ["VISUAL", "EDITOR"].into_iter().find_map(crate::environment::var).unwrap_or_else(|| "vi".into());
        // The variable may hold arguments ("code --wait"): a shell splits it, the file's path is passed apart.
        let status = std::process::Command::new("/bin/sh").arg("-c").arg(format!("{editor} \"$1\"")).arg("sh").arg(&edited.0).status();
        if !status.map_err(|error| io(&error))?.success() {
            let error = Public::new(Code::Usage, format!("the editor \"{editor}\" ended with a failure; nothing was changed"));
            return Err(error.hint("VISUAL or EDITOR names another"));
        }
        Ok(edited)
    }
    fn read(&self) -> Result<String, Public> {
        std::fs::read_to_string(&self.0).map_err(|error| io(&error))
    }
    /// Work is not thrown away because of a slip.
    fn keep(self, error: Public) -> Public {
        let kept = self.0.display().to_string();
        std::mem::forget(self);
        error.hint(format!("your text is kept: correct it, then tctl create -f {kept}"))
    }
}

impl Drop for Edited {
    fn drop(&mut self) {
        let _already_gone = std::fs::remove_file(&self.0);
    }
}

/// `tctl rm`
pub(crate) fn rm(global: &Global, resource: &str) -> Outcome {
    let Some((kind, name)) = resource.split_once('/').filter(|(_, name)| !name.is_empty()) else {
        return Err(Failure::new("remove", usage(format!("\"{resource}\" is not kind/name, e.g. role/dev"))));
    };
    let kind = canonical_kind(kind);
    let connection = connect::open(global)?;
    connection.run(connection.api().delete(&kind, name, None)).could(format!("remove {kind}/{name}"))?;
    write_out(&format!("{kind}/{name} has been deleted\n")).could("print")?;
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_documents_are_read_with_plural_kinds() {
        let text = "---\nkind: roles\nversion: v1\nmetadata: {name: dev}\nspec: {allow: {logins: [app]}}\n---\nkind: user\nversion: v1\nmetadata: {name: alice}\nspec: {roles: [dev]}\n";
        let documents = parse_many(text).unwrap();
        assert_eq!(documents.iter().map(Document::reference).collect::<Vec<_>>(), ["role/dev", "user/alice"]);
    }

    #[test]
    fn a_document_survives_yaml_with_unknown_fields() {
        let json = br#"{"kind":"role","version":"v1","metadata":{"name":"dev","colour":"blue"},"spec":{"options":{"new_thing":[1,2,{"a":null}]},"text":"yes: no # x"},"future":true}"#;
        let document = Document::from_json(json).unwrap();
        let yaml = serde_saphyr::to_string(&document).unwrap();
        assert_eq!(parse_many(&yaml).unwrap(), [document]);
    }

    #[test]
    fn a_fault_has_line_and_column() {
        let fault = parse_many("kind: role\nversion: v1\nmetadata:\n  name: 'a b'\n").unwrap_err();
        assert!(fault.starts_with(":4:9: \"a b\" is not"), "{fault}");
    }
}
