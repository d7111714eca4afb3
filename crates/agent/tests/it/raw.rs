//! A client that speaks SSH by hand, without encryption, to say what no library would: for the attack tests only.

use crate::world::{SOON, World};
use agent::ssh::Settings;
use russh::{
    Preferred, cipher, compression, kex,
    keys::{Algorithm, Certificate, PrivateKey, PublicKey, signature::Signer, ssh_encoding::Encode, ssh_key::Signature},
    mac,
};
use std::borrow::Cow;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

pub(crate) const FAILURE: u8 = 51;
pub(crate) const SUCCESS: u8 = 52;
pub(crate) const PK_OK: u8 = 60;
pub(crate) const OPEN_CONFIRMATION: u8 = 91;
pub(crate) const OPEN_FAILURE: u8 = 92;

/// Settings under which everything is in the clear. The signed session id is empty then.
pub(crate) fn in_the_clear() -> Settings {
    let preferred = Preferred {
        host_key_certificates: Cow::Borrowed(&[]),
        kex: Cow::Owned(vec![kex::NONE]),
        key: Cow::Owned(vec![Algorithm::Ed25519]),
        cipher: Cow::Owned(vec![cipher::NONE]),
        mac: Cow::Owned(vec![mac::NONE]),
        compression: Cow::Owned(vec![compression::NONE]),
    };
    Settings { preferred, ..Settings::default() }
}

pub(crate) struct Raw {
    stream: DuplexStream,
    opened: u32,
}

pub(crate) fn string(into: &mut Vec<u8>, value: &[u8]) {
    into.extend(u32::try_from(value.len()).unwrap().to_be_bytes());
    into.extend(value);
}

/// What a `publickey` request names.
#[derive(Clone, Copy)]
pub(crate) enum Offer<'a> {
    Certificate(&'a Certificate),
    Key(&'a PublicKey),
}

impl Offer<'_> {
    fn algorithm(self) -> String {
        match self {
            Self::Certificate(certificate) => certificate.algorithm().to_certificate_type(),
            Self::Key(key) => key.algorithm().as_str().to_owned(),
        }
    }
    fn blob(self) -> Vec<u8> {
        match self {
            Self::Certificate(certificate) => certificate.to_bytes().unwrap(),
            Self::Key(key) => key.to_bytes().unwrap(),
        }
    }
}

impl Raw {
    pub(crate) async fn connect(world: &World) -> Self {
        let mut raw = Self { stream: world.stream(), opened: 0 };
        raw.stream.write_all(b"SSH-2.0-raw\r\n").await.unwrap();
        while raw.stream.read_u8().await.unwrap() != b'\n' {}
        raw.read().await.unwrap();
        let mut kexinit = vec![20];
        kexinit.extend([0; 16]);
        for list in ["none", "ssh-ed25519", "none", "none", "none", "none", "none", "none", "", ""] {
            string(&mut kexinit, list.as_bytes());
        }
        kexinit.extend([0; 5]);
        raw.send(&kexinit).await;
        assert_eq!(raw.read().await.unwrap(), [21]);
        raw.send(&[21]).await;
        let mut service = vec![5];
        string(&mut service, b"ssh-userauth");
        raw.send(&service).await;
        assert_eq!(raw.kind().await, Some(6));
        raw
    }

    pub(crate) async fn send(&mut self, payload: &[u8]) {
        let mut padding = 8 - ((5 + payload.len()) % 8);
        if padding < 4 {
            padding += 8;
        }
        let mut packet = u32::try_from(1 + payload.len() + padding).unwrap().to_be_bytes().to_vec();
        packet.push(u8::try_from(padding).unwrap());
        packet.extend(payload);
        packet.resize(packet.len() + padding, 0);
        // The other end may have hung up; the next read tells.
        let _gone = self.stream.write_all(&packet).await;
    }

    /// The next packet, or `None` when the other end hung up.
    pub(crate) async fn read(&mut self) -> Option<Vec<u8>> {
        let reading = async {
            let len = usize::try_from(self.stream.read_u32().await.ok()?).unwrap();
            let mut packet = vec![0; len];
            self.stream.read_exact(&mut packet).await.ok()?;
            let padding = usize::from(packet[0]);
            Some(packet[1..packet.len() - padding].to_vec())
        };
        tokio::time::timeout(SOON, reading).await.expect("no answer")
    }

    /// The next packet's kind; extension info, ignorable ones, and russh's second refusal of unknown channels skipped.
    pub(crate) async fn kind(&mut self) -> Option<u8> {
        loop {
            match self.read().await?.first().copied() {
                Some(2 | 4 | 7 | 53 | OPEN_FAILURE) => {}
                kind => return kind,
            }
        }
    }

    /// A `publickey` request; signed over what `signed_user` says by `signer`, or only offered.
    pub(crate) async fn auth(&mut self, user: &str, offer: Offer<'_>, signer: Option<(&PrivateKey, &str)>) {
        let request = |user: &str, signed: u8| {
            let mut packet = vec![50];
            for part in [user, "ssh-connection", "publickey"] {
                string(&mut packet, part.as_bytes());
            }
            packet.push(signed);
            string(&mut packet, offer.algorithm().as_bytes());
            string(&mut packet, &offer.blob());
            packet
        };
        let mut packet = request(user, u8::from(signer.is_some()));
        if let Some((key, signed_user)) = signer {
            let mut signed = Vec::new();
            string(&mut signed, b"");
            signed.extend(request(signed_user, 1));
            let signature: Signature = Signer::try_sign(key, &signed).unwrap();
            let mut encoded = Vec::new();
            signature.encode(&mut encoded).unwrap();
            string(&mut packet, &encoded);
        }
        self.send(&packet).await;
    }

    /// Opens a channel; the server's number for it, unless refused.
    pub(crate) async fn open(&mut self, kind: &str) -> Option<u32> {
        let mut packet = vec![90];
        string(&mut packet, kind.as_bytes());
        self.opened += 1;
        for number in [self.opened, 1 << 20, 32 << 10] {
            packet.extend(number.to_be_bytes());
        }
        if kind == "x11" {
            string(&mut packet, b"127.0.0.1");
            packet.extend(1u32.to_be_bytes());
        }
        self.send(&packet).await;
        loop {
            let answer = self.read().await.unwrap();
            let ours = answer.get(1..5) == Some(&self.opened.to_be_bytes());
            match answer[0] {
                OPEN_CONFIRMATION if ours => return Some(u32::from_be_bytes(answer[5..9].try_into().unwrap())),
                OPEN_FAILURE if ours => return None,
                _ => {}
            }
        }
    }

    /// A request on a channel, with whatever follows its name.
    pub(crate) async fn request(&mut self, channel: u32, name: &str, rest: &[u8]) {
        let mut packet = vec![98];
        packet.extend(channel.to_be_bytes());
        string(&mut packet, name.as_bytes());
        packet.push(1);
        packet.extend(rest);
        self.send(&packet).await;
    }

    /// A global request; the answer's kind.
    pub(crate) async fn global(&mut self, name: &str, rest: &[u8]) -> Option<u8> {
        let mut packet = vec![80];
        string(&mut packet, name.as_bytes());
        packet.push(1);
        packet.extend(rest);
        self.send(&packet).await;
        self.kind().await
    }

    /// In as alice.
    pub(crate) async fn alice(world: &World) -> Self {
        let mut raw = Self::connect(world).await;
        let badge = world.badge("alice");
        let login = crate::world::own_login();
        raw.auth(login.as_str(), Offer::Certificate(&badge.certificate), Some((&badge.key, login.as_str()))).await;
        assert_eq!(raw.kind().await, Some(SUCCESS));
        raw
    }
}
