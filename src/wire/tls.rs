//! TLS 1.3 with raw public keys (RFC 7250) on both sides, both derived from the token: whoever has it is the peer, and
//! nobody else. No certificates, no names, no resumption, no early data.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{AlwaysResolvesClientRawPublicKeys, Resumption};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, ring, verify_tls13_signature_with_raw_key};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName, SubjectPublicKeyInfoDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{AlwaysResolvesServerRawPublicKeys, NoServerSessionStorage};
use rustls::sign::CertifiedKey;
use rustls::{
    CertificateError, ClientConfig, ClientConnection, DigitallySignedStruct, DistinguishedName, Error, ServerConfig,
    ServerConnection, SignatureScheme,
};

use super::Token;

/// Says what is spoken, and in which form: a peer of another one is told apart before anything is sent.
const PROTOCOL: &[u8] = b"restorefs/2";

/// What goes before the 32 bytes of an Ed25519 seed to make it PKCS #8 (RFC 8410, section 7).
const PKCS8: [u8; 16] = [0x30, 0x2e, 2, 1, 0, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 4, 0x22, 4, 0x20];

/// Which of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Sender,
    Receiver,
}

impl Side {
    fn key(self, token: &Token) -> Result<CertifiedKey, Error> {
        let seed = token.derive(match self {
            Side::Sender => "restorefs 2026-11 sender key",
            Side::Receiver => "restorefs 2026-11 receiver key",
        });
        let mut pkcs8 = PKCS8.to_vec();
        pkcs8.extend(seed);
        let key = ring::sign::any_eddsa_type(&PrivatePkcs8KeyDer::from(pkcs8))?;
        let public = key.public_key().ok_or_else(|| Error::General("a key without its public part".into()))?;
        Ok(CertifiedKey::new(vec![CertificateDer::from(public.to_vec())], key))
    }
}

/// What the receiver's side of connections is made from.
pub(super) fn receiver(token: &Token) -> Result<Arc<ServerConfig>, Error> {
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(Arc::new(Peer::new(Side::Sender, token)?))
        .with_cert_resolver(Arc::new(AlwaysResolvesServerRawPublicKeys::new(Side::Receiver.key(token)?.into())));
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    config.alpn_protocols = vec![PROTOCOL.into()];
    Ok(Arc::new(config))
}

/// A connection from the sender's side.
pub(super) fn sender(token: &Token) -> Result<ClientConnection, Error> {
    sender_of(token, PROTOCOL)
}

fn sender_of(token: &Token, protocol: &[u8]) -> Result<ClientConnection, Error> {
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Peer::new(Side::Receiver, token)?))
        .with_client_cert_resolver(Arc::new(AlwaysResolvesClientRawPublicKeys::new(Side::Sender.key(token)?.into())));
    config.resumption = Resumption::disabled();
    config.enable_early_data = false;
    config.enable_sni = false;
    config.alpn_protocols = vec![protocol.into()];
    let nobody = ServerName::try_from("restorefs.invalid").map_err(|e| Error::General(e.to_string()))?;
    ClientConnection::new(Arc::new(config), nobody)
}

/// A connection from the receiver's side.
pub(super) fn accept(config: &Arc<ServerConfig>) -> Result<ServerConnection, Error> {
    ServerConnection::new(config.clone())
}

/// Whether an error means that the other side has another token.
pub(super) fn is_denied(e: &Error) -> bool {
    use rustls::AlertDescription as Alert;
    match e {
        Error::InvalidCertificate(_) => true,
        Error::AlertReceived(alert) => matches!(
            alert,
            Alert::BadCertificate
                | Alert::CertificateUnknown
                | Alert::UnknownCA
                | Alert::AccessDenied
                | Alert::CertificateRequired
                | Alert::DecryptError
        ),
        _ => false,
    }
}

/// Whether an error means that the other side speaks another version of the protocol.
pub(super) fn is_other_version(e: &Error) -> bool {
    let refused = Error::AlertReceived(rustls::AlertDescription::NoApplicationProtocol);
    *e == Error::NoApplicationProtocol || *e == refused
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

/// Takes one public key, and no other.
#[derive(Debug)]
struct Peer {
    public: blake3::Hash,
    algorithms: WebPkiSupportedAlgorithms,
}

impl Peer {
    fn new(side: Side, token: &Token) -> Result<Self, Error> {
        let key = side.key(token)?;
        Ok(Peer {
            public: blake3::hash(key.end_entity_cert()?),
            algorithms: ring::default_provider().signature_verification_algorithms,
        })
    }

    fn check(&self, key: &CertificateDer<'_>) -> Result<(), Error> {
        // Hashes of blake3 are compared in constant time.
        if blake3::hash(key) == self.public {
            Ok(())
        } else {
            Err(CertificateError::ApplicationVerificationFailure.into())
        }
    }

    fn verify(
        &self,
        message: &[u8],
        key: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let key = SubjectPublicKeyInfoDer::from(key.as_ref());
        verify_tls13_signature_with_raw_key(message, &key, signed, &self.algorithms)
    }
}

/// TLS 1.2 is not spoken.
fn no_tls12() -> Result<HandshakeSignatureValid, Error> {
    Err(rustls::PeerIncompatible::Tls13RequiredForQuic.into())
}

impl ServerCertVerifier for Peer {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.check(end_entity).map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        no_tls12()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        key: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verify(message, key, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

impl ClientCertVerifier for Peer {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.check(end_entity).map(|()| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        no_tls12()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        key: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verify(message, key, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_version_is_told_on_both_sides() {
        let token = Token::generate().unwrap();
        let mut receiver = accept(&receiver(&token).unwrap()).unwrap();
        let mut sender = sender_of(&token, b"restorefs/1").unwrap();
        let mut bytes = Vec::new();
        sender.write_tls(&mut bytes).unwrap();
        receiver.read_tls(&mut &bytes[..]).unwrap();
        let refused = receiver.process_new_packets().unwrap_err();
        assert!(is_other_version(&refused), "{refused:?}");
        bytes.clear();
        receiver.write_tls(&mut bytes).unwrap();
        sender.read_tls(&mut &bytes[..]).unwrap();
        let refused = sender.process_new_packets().unwrap_err();
        assert!(is_other_version(&refused), "{refused:?}");
    }
}
