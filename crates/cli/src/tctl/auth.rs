//! `tctl auth …`: the authorities' public keys for others to trust, and certificates for those who cannot log in or join.

use super::{ExportType, Global, SignArgs, SignFormat, connect};
use crate::{
    exit::{Could as _, Failure, Outcome, usage},
    output::write_out,
};
use client::{credentials::UserCredentials, identity_file, keys::KeyPair, trust::ClusterTrust};
use std::{path::PathBuf, process::ExitCode};
use types::{Code, Labels, Public, kind::CertAuthority};

/// `tctl auth export`
pub(crate) fn export(global: &Global, kind: ExportType, fingerprint: bool) -> Outcome {
    let connection = connect::open(global)?;
    let authorities = connection.run(connection.api().list::<CertAuthority>(&Labels::new())).could("read the authorities")?;
    let wanted = match kind {
        ExportType::User | ExportType::TlsUser => "user",
        ExportType::Host | ExportType::TlsHost => "host",
    };
    let mut text = String::new();
    for key in authorities.items.iter().filter(|authority| authority.spec.ca_type == wanted).flat_map(|authority| &authority.spec.keys) {
        let line = match (kind, fingerprint) {
            (ExportType::TlsUser | ExportType::TlsHost, true) => format!("{}\n", key.pin),
            (ExportType::TlsUser | ExportType::TlsHost, false) => format!("{}\n", key.tls.trim_end()),
            (ExportType::User | ExportType::Host, true) => {
                let parsed: russh::keys::PublicKey = key
                    .ssh
                    .parse()
                    .map_err(|_| Public::new(Code::Malformed, "an authority's key cannot be read"))
                    .could("read the authorities")?;
                format!("{}\n", wire::identity::ssh_fingerprint(&parsed))
            }
            // The form of TrustedUserCAKeys, and of a line in known_hosts.
            (ExportType::User, false) => format!("{}\n", key.ssh.trim()),
            (ExportType::Host, false) => format!("@cert-authority * {}\n", key.ssh.trim()),
        };
        text.push_str(&line);
    }
    if text.is_empty() {
        return Err(Failure::new("export the authority", Public::new(Code::NotFound, format!("there is no {wanted} authority"))));
    }
    write_out(&text).could("print the authority").map(|()| ExitCode::SUCCESS)
}

/// `tctl auth sign`
pub(crate) fn sign(global: &Global, args: &SignArgs) -> Outcome {
    let key = KeyPair::generate().map_err(|error| Public::new(Code::Internal, error.to_string())).could("make a key")?;
    let public = key.ssh_public().map_err(|error| Public::new(Code::Internal, error.to_string())).could("make a key")?;
    let request = wire::api::SignRequest {
        user: args.user.clone().unwrap_or_default(),
        ssh_public_key: public,
        tls_public_key: key.spki_der().into(),
        ttl: args.ttl.0.as_secs(),
        host_names: args.host.clone(),
    };
    let connection = connect::open(global)?;
    let reply = connection.run(connection.api().sign(request)).could("sign")?;
    let whom = args.user.clone().unwrap_or_else(|| args.host.join(", "));
    let written = write(args, &connection.cluster, &key, &reply).could("write the certificates")?;
    let files = written.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ");
    write_out(&format!("The certificates for {whom} are in {files}, valid until {}.\n", crate::output::seconds(&reply.expires)))
        .could("print")?;
    Ok(ExitCode::SUCCESS)
}

fn write(args: &SignArgs, cluster: &types::ClusterName, key: &KeyPair, reply: &wire::api::UserCredentials) -> Result<Vec<PathBuf>, Public> {
    let internal = |error: &dyn std::fmt::Display| Public::new(Code::Internal, error.to_string());
    let stem = |suffix: &str| {
        let mut name = args.out.clone().into_os_string();
        name.push(suffix);
        PathBuf::from(name)
    };
    let put = |path: PathBuf, content: &str| {
        net::tls::write_private(&path, content.as_bytes()).map(|()| path).map_err(|error| usage(error.to_string()))
    };
    match args.format {
        SignFormat::File => {
            let trust = ClusterTrust::from_documents(cluster, &client::trust::documents(&reply.authorities).0);
            let credentials = UserCredentials::new(key.clone(), &reply.ssh_certificate, &reply.tls_certificate, trust)
                .map_err(|error| internal(&error))?;
            identity_file::save(&args.out, &credentials).map_err(|error| usage(error.to_string()))?;
            Ok(vec![args.out.clone()])
        }
        SignFormat::Openssh => {
            let private = key.openssh_pem().map_err(|error| internal(&error))?;
            Ok(vec![put(args.out.clone(), private.expose())?, put(stem("-cert.pub"), &format!("{}\n", reply.ssh_certificate.trim()))?])
        }
        SignFormat::Tls => {
            let authorities = client::trust::documents(&reply.authorities).0;
            let pem: String = authorities
                .iter()
                .filter_map(|document| types::Resource::<CertAuthority>::from_document(document.clone()).ok())
                .flat_map(|authority| authority.spec.keys)
                .map(|key| key.tls)
                .collect();
            Ok(vec![put(stem(".key"), key.pkcs8_pem().expose())?, put(stem(".crt"), &reply.tls_certificate)?, put(stem(".cas"), &pem)?])
        }
    }
}
